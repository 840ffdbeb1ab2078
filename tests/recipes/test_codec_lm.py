"""The language models over codes: every YAML on a tiny codec, and what the coder's bytes say."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.coding.code_transformer import CodeTransformer
from speechkit.coding.integer_model import IntegerCodeModel
from speechkit.coding.skc import read_skc, write_skc
from speechkit.data.code_files import CodeLayout, Rate, read_codes, write_codes
from speechkit.data.codes import CodeData
from speechkit.data.errors import DataError
from speechkit.models.codec import Codec
from speechkit.nn.quantize import ResidualVectorQuantizer
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
from speechkit.results import RunResults, read_rows, score_folder
from speechkit.run import run
from speechkit.training import Interrupted, Stage, Training

ROOT = Path(__file__).parents[2]
YAMLS = sorted(ROOT.glob("recipes/codec/hparams/*_lm.yaml"))
TINY = [
    "--model.embed_dim", "16", "--model.num_heads", "2", "--model.ffn_dim", "16",
    "--model.num_layers", "1", "--training.epochs", "2", "--device", "cpu",
]  # fmt: skip
COUNTS = (1, 2, 3)  # of the codebooks of the rates


@pytest.fixture(scope="module")
def script() -> ModuleType:
    name = "recipe_codec_lm"
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes/codec/train_lm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def save_codec(folder: Path, *, seed: int = 0, rate: int = 16000, channels: int = 1) -> Path:
    """Save an untrained codec of 50 frames a second at 16 kHz, with three codebooks of 16."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_filters": 2, "latent_size": 6, "lstm_layers": 1, "channels": channels,
    }  # fmt: skip
    codec = Codec(
        sample_rate=rate,
        channels=channels,
        encoder=SEANetEncoder(strides=(2, 4, 5, 8), **sizes),
        quantizer=ResidualVectorQuantizer(
            latent_size=6, codebook_size=16, num_codebooks=3, kmeans_iterations=0
        ),
        decoder=SEANetDecoder(strides=(8, 5, 4, 2), **sizes),
    )
    speechkit.save(codec, folder)
    return folder


@pytest.fixture
def manifests(toy_corpus: Path, tmp_path: Path) -> Path:
    """Return a folder with train.jsonl, valid.jsonl and test.jsonl: a few utterances each."""
    folder = tmp_path / "manifests"
    from speechkit.data.manifest import read_manifest, write_manifest

    for split, source in (("train", "train"), ("valid", "dev"), ("test", "test")):
        rows = read_manifest(toy_corpus / f"manifests/{source}.jsonl")
        write_manifest(folder / f"{split}.jsonl", rows[: 6 if split == "train" else 3])
    return folder


@pytest.mark.parametrize("yaml", [pytest.param(path, id=path.stem) for path in YAMLS])
def test_every_yaml(yaml: Path, manifests: Path, tmp_path: Path, script: ModuleType) -> None:
    rate = 24000 if "24khz" in yaml.stem else 16000
    codec = save_codec(tmp_path / "codec", rate=rate)
    folder = tmp_path / "run"
    run(
        script.CodeModeling,
        [
            str(yaml), "--codec", str(codec), "--manifests", str(manifests),
            "--codes", str(tmp_path / "codes"), "--output_folder", str(folder), *TINY,
        ],
    )  # fmt: skip
    results = {r.metric: r.value for r in RunResults.read(folder / "RESULTS.json").results["test"]}
    assert results == {r.metric: r.value for _, r in score_folder(folder)}
    model = speechkit.load(folder / "model")
    assert isinstance(model, CodeTransformer)
    assert (model.num_codebooks, model.codebook_size) == (3, 16)
    check_bytes(folder, tmp_path / "codes/test.json", IntegerCodeModel.from_float(model))
    assert {name.rpartition("_")[2] for name in results if name.startswith("saving_")} == {
        f"{rate / 80000 * count:g}kbps" for count in COUNTS
    }


def check_bytes(folder: Path, codes: Path, predictor: IntegerCodeModel) -> None:
    """The rows' bytes are those of real files, written with the model that was saved."""
    file = read_codes(codes)
    rows = {row["id"]: row for row in read_rows(folder / "test/test/rows.jsonl")}
    assert list(rows) == [rows[u.id]["id"] for u in sorted(
        file.utterances, key=lambda u: -u.num_frames)]  # fmt: skip
    for utterance in file.utterances:
        frames = file.frames[utterance.start : utterance.start + utterance.num_frames]
        for rate in rows[utterance.id]["rates"]:
            part = frames.T[: rate["num_codebooks"]].astype(np.int64)
            for key, used in (("packed_file_bytes", None), ("coded_file_bytes", predictor)):
                header = file.layout.header(len(part), used.digest if used else b"")
                stream = io.BytesIO()
                write_skc(stream, header, part, part.shape[1] * header.hop_length, used)
                assert stream.tell() == rate[key]
                stream.seek(0)
                assert np.array_equal(read_skc(stream, used).codes, part)


# ---------------------------------------------------------------- what is learnt

SIZE, FRAMES = 8, 40


def layout(codebooks: int = 2, size: int = SIZE, codec: str = "00" * 8) -> CodeLayout:
    counts = sorted({1, codebooks})
    return CodeLayout(
        codec_id=codec, sample_rate=8000, channels=1, hop_length=200, num_codebooks=codebooks,
        codebook_size=size, rates=tuple(Rate(0.12 * n, n) for n in counts),
    )  # fmt: skip


def markov(num_frames: int, generator: np.random.Generator) -> np.ndarray:
    """Draw codes ``(2, T)``: the first takes one of two steps, the second follows the first.

    Its next code is the first codebook's last one, or, one time in four, any.
    """
    codes = np.zeros((2, num_frames), dtype=np.int64)
    codes[:, 0] = generator.integers(SIZE, size=2)
    for t in range(1, num_frames):
        codes[0, t] = (codes[0, t - 1] + (1 if generator.random() < 0.9 else 3)) % SIZE
        any_code = generator.random() < 0.25
        codes[1, t] = generator.integers(SIZE) if any_code else codes[0, t - 1]
    return codes


def information(codes: np.ndarray) -> np.ndarray:
    """Bits ``(2,)`` that the source itself gives each codebook of a chunk ``(2, T)``."""
    steps = (codes[0, 1:] - codes[0, :-1]) % SIZE
    same = codes[1, 1:] == codes[0, :-1]
    first = np.where(steps == 1, 0.9, 0.1)
    second = np.where(same, 0.75 + 0.25 / SIZE, 0.25 / SIZE)
    return math.log2(SIZE) - np.array([np.log2(first).sum(), np.log2(second).sum()])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write splits of the source; utterances of several chunks, the last one short."""
    folder = tmp_path_factory.mktemp("markov")
    generator = np.random.default_rng(0)
    for split, count, frames in (("train", 80, 90), ("valid", 4, 90), ("test", 6, 95)):
        codes = ((f"{split}{n}", markov(frames + n % 3, generator)) for n in range(count))
        write_codes(folder / f"{split}.json", layout(), codes, manifest_sha256="")
    return folder


def make(
    script: ModuleType, folder: Path, source: Path, kind: str = "CodeModeling", **changes: Any
) -> Any:
    torch.manual_seed(0)
    brain = type("Brain", (script.CodeModeling,), changes.pop("methods", {}))
    model = CodeTransformer(
        num_codebooks=2, codebook_size=SIZE, embed_dim=32, num_heads=2, ffn_dim=32, num_layers=1,
        max_distance=FRAMES, dropout=changes.pop("dropout", 0.0),
    )  # fmt: skip
    return brain(
        model=model,
        data=CodeData(
            train=source / "train.json", valid=source / "valid.json",
            test={"test": source / "test.json"}, crop_frames=FRAMES, max_batch_frames=640, seed=3,
        ),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        training=Training(metric="bits_per_code", **changes),
        folder=folder,
        seed=3,
    )  # fmt: skip


def test_a_source_is_learnt_to_near_its_entropy(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    brain = make(script, tmp_path, source, epochs=12)
    brain.fit()
    brain.load_best()
    results = {r.metric: r.value for r in brain.test()["test"]}
    file = read_codes(source / "test.json")
    chunks = [
        file.frames[start : min(start + FRAMES, u.start + u.num_frames)].T.astype(np.int64)
        for u in file.utterances
        for start in range(u.start, u.start + u.num_frames, FRAMES)
    ]
    first, both = (np.cumsum([information(chunk) for chunk in chunks], axis=1).sum(0)).tolist()
    codes = len(file.frames)
    for kbps, bound, count in (("0.12", first, codes), ("0.24", both, 2 * codes)):
        found = results[f"bits_per_code_{kbps}kbps"]
        assert 0.99 < found * count / bound < 1.08
        assert results[f"rounding_{kbps}kbps"] == pytest.approx(0.0, abs=1.0)
        # Beside its content, a stream has at most a coder's first state and half-filled byte.
        spent = results[f"excess_{kbps}kbps"] / 100 * found * count
        assert 0 < spent < 24 * len(chunks)
        packed = sum(-(-chunk.shape[1] * 3 * count // codes // 8) for chunk in chunks)
        coded = results[f"coded_bits_per_code_{kbps}kbps"] * count / 8
        assert results[f"saving_{kbps}kbps"] == pytest.approx(100 * (1 - coded / packed))


@torch.no_grad()
def test_each_rate_has_its_own_entropy(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """What evaluation reads off is what the model gives for codes cut by hand."""
    brain = make(script, tmp_path, source, epochs=1, dropout=0.5)
    (batch,) = brain.data.eval_loader("valid")
    brain.model.eval()
    found = brain.compute_forward(batch, Stage.VALID)
    frames, lengths = batch.codes
    for item, length in enumerate(lengths.tolist()):
        for column, count in enumerate((1, 2)):
            bits = torch.zeros(())
            for start in range(0, length, FRAMES):
                codes = frames[item, start : min(start + FRAMES, length), :count].T[None]
                log_probs = brain.model(codes).log_softmax(3)
                bits -= log_probs.gather(3, codes[..., None]).sum() / math.log(2)
            assert float(found.bits[item, column]) == pytest.approx(bits.item(), rel=1e-5)
            assert int(found.num_codes[item, column]) == length * count


def test_a_long_utterance_is_evaluated_in_parts(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    brain = make(script, tmp_path, source, epochs=1)
    (batch,) = brain.data.eval_loader("valid")
    sizes: list[int] = []

    def counting(codes: Tensor, lengths: Tensor) -> Tensor:
        sizes.append(codes.shape[0] * codes.shape[2])
        return brain.model(codes, lengths)

    brain.model.eval()
    whole = brain.compute_forward(batch, Stage.VALID).bits
    brain.forward, brain.data.eval_batch_frames = counting, 100
    assert torch.allclose(brain.compute_forward(batch, Stage.VALID).bits, whole)
    assert max(sizes) <= 100 < sum(sizes)


def test_training_draws_the_rates(script: ModuleType, source: Path, tmp_path: Path) -> None:
    brain = make(script, tmp_path, source, epochs=1)
    batch = next(iter(brain.data.train_loader(0)))

    def draw(step: int) -> int:
        brain.position.step = step
        outputs = brain.compute_forward(batch, Stage.TRAIN)
        (count,) = set((outputs.num_codes[:, 0] // batch.codes.lengths).tolist())
        return int(count)

    drawn = [draw(step) for step in range(20)]
    turns = {tuple(drawn[n : n + 2]) for n in range(0, 20, 2)}
    assert turns == {(1, 2), (2, 1)}  # both rates in each, in any order
    assert [draw(step) for step in (19, 7, 0)] == [drawn[19], drawn[7], drawn[0]]


def test_a_stopped_training_resumes_exactly(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    whole = make(script, tmp_path / "whole", source, epochs=2, dropout=0.2)
    whole.fit()

    def stopping(self: Any, batches: Any) -> None:
        script.CodeModeling.fit_batches(self, batches)
        if self.position.step == 13:
            self.stop.number = 15

    cut = make(
        script, tmp_path / "cut", source, epochs=2, dropout=0.2,
        methods={"fit_batches": stopping},
    )  # fmt: skip
    with pytest.raises(Interrupted):
        cut.fit()
    assert cut.position.step == 14
    assert 0 < cut.position.batch < cut.data.num_train_batches(cut.position.epoch)
    torch.manual_seed(99)
    second = make(script, tmp_path / "cut", source, epochs=2, dropout=0.2)
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_a_model_for_other_codes_is_refused(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    data = CodeData(train=source / "train.json", crop_frames=FRAMES, max_batch_frames=640)
    model = CodeTransformer(num_codebooks=4, codebook_size=SIZE, embed_dim=8, num_heads=2)
    with pytest.raises(DataError, match="4 codebooks of 8 codes, the codec has 2 of 8"):
        script.CodeModeling(
            model=model, data=data, optimizer=torch.optim.SGD, training=Training(epochs=1),
            folder=tmp_path,
        )  # fmt: skip


def test_codes_that_do_not_come_back_are_an_error(
    script: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coder that reads other codes than it wrote stops the test; it gives no number."""
    brain = make(script, tmp_path, source, epochs=1)
    honest = IntegerCodeModel.step

    def forgetful(self: IntegerCodeModel, state: Any, codes: np.ndarray | None) -> np.ndarray:
        return honest(self, state, None if codes is None else (codes + 1) % SIZE)

    monkeypatch.setattr(IntegerCodeModel, "step", forgetful)
    with pytest.raises(RuntimeError, match="does not come back"):
        brain.test()
