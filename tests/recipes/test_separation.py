"""Every YAML of separation trains, tests and saves, on corpora made of the toy corpus's voices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch

import speechkit
from speechkit.data.audio import read_audio
from speechkit.results import RunResults, read_rows, score_folder
from speechkit.run import run

HPARAMS = Path(__file__).parents[2] / "recipes" / "separation" / "hparams"
YAMLS = sorted(HPARAMS.glob("*.yaml"))

ONE_EPOCH = ["--training.epochs", "1", "--device", "cpu"]
CROPS = ["--segment_seconds", "0.3", "--data.limit", "3"]
WORKERS = ["--data.num_workers", "0"]
TINY_FILTERS = [
    "--model.encoder.num_filters", "16", "--model.decoder.num_filters", "16",
    "--model.masker.num_features", "16",
]  # fmt: skip
TINY_TCN = [
    *TINY_FILTERS, "--model.masker.bottleneck_size", "8", "--model.masker.hidden_size", "12",
    "--model.masker.skip_size", "8", "--model.masker.num_blocks", "2",
    "--model.masker.num_repeats", "1",
]  # fmt: skip
TINY_SEPFORMER = [
    *TINY_FILTERS, "--model.masker.bottleneck_size", "8", "--model.masker.num_heads", "2",
    "--model.masker.num_blocks", "1", "--model.masker.intra_layers", "1",
    "--model.masker.inter_layers", "1", "--model.masker.feedforward_size", "16",
    "--model.masker.chunk_size", "20",
]  # fmt: skip
SMALL: dict[str, list[str]] = {
    "librimix_mini_convtasnet": [*CROPS, *TINY_TCN],
    "librimix_mini_sepformer": [*CROPS, *TINY_SEPFORMER],
    "librimix_sepformer": [*CROPS, *WORKERS, *TINY_SEPFORMER],
    "wsj0mix_convtasnet": [*CROPS, *WORKERS, *TINY_TCN],
    "wsj0mix_dprnn": [
        *CROPS, *WORKERS, *TINY_FILTERS, "--model.encoder.kernel_size", "16",
        "--model.encoder.stride", "8", "--model.decoder.kernel_size", "16",
        "--model.decoder.stride", "8", "--model.masker.bottleneck_size", "8",
        "--model.masker.hidden_size", "4", "--model.masker.num_blocks", "1",
        "--model.masker.chunk_size", "20",
    ],
    "wsj0mix_sepformer": [*CROPS, *WORKERS, *TINY_SEPFORMER],
    "wsj0mix_light_sepformer": [
        *CROPS, *WORKERS, *TINY_FILTERS, "--model.masker.num_heads", "2",
        "--model.masker.num_layers", "1", "--model.masker.feedforward_size", "16",
        "--model.masker.chunk_size", "20",
    ],
    "wsj0mix3_sepformer": [*CROPS, *WORKERS, *TINY_SEPFORMER],
    "whamr_sepformer": [*CROPS, *WORKERS, *TINY_SEPFORMER],
    "voicebank_convtasnet": [*CROPS, *WORKERS, *TINY_TCN],
}  # fmt: skip


@pytest.fixture(scope="session")
def toy_mixtures(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of separation corpora in small, of the toy corpus's voices.

    ``lists`` of WSJ0-Mix and ``metadata`` of LibriMix name its utterances; ``2speakers``, ``whamr``
    and ``voicebank`` are rendered.
    """
    pytest.importorskip("scipy.signal")
    from speechkit.datasets import wsj0mix

    root = tmp_path_factory.mktemp("mixtures")
    voices = {
        split: sorted(path.relative_to(toy_corpus) for path in toy_corpus.glob(f"{name}/*/*/*"))
        for split, name in (("tr", "train"), ("cv", "dev"), ("tt", "test"))
    }
    # Files far apart, so that the speakers of a training mixture differ.
    voices = {k: [p for p in v if p.suffix == ".flac"] for k, v in voices.items()}
    chosen = {
        "tr": [voices["tr"][n : n + 17 : 8] for n in range(4)],
        **{k: [[voices[k][n], voices[k][-1 - n], voices[k][2]] for n in range(2)] for k in voices
           if k != "tr"},
    }  # fmt: skip
    write_lists(root, chosen)
    write_metadata(root / "metadata", chosen)
    (root / "wham_noise/tr").mkdir(parents=True)
    noise = 0.02 * torch.randn(48000, generator=torch.Generator().manual_seed(0))
    soundfile.write(root / "wham_noise/tr/noise.wav", noise.numpy(), 16000)
    wsj0mix.make(root / "lists", toy_corpus, root)
    add_rooms(root / "2speakers/wav8k/min", root / "whamr/wav8k/min")
    for part, item, path in (
        ("trainset_28spk", "p226_001", voices["cv"][0]),
        ("trainset_28spk", "p228_001", voices["tr"][0]),
        ("trainset_28spk", "p229_001", voices["tr"][8]),
        ("testset", "p232_001", voices["tt"][0]),
    ):
        clean, rate = soundfile.read(toy_corpus / path, dtype="float32")
        sounds = {"clean": clean, "noisy": clean + noise.repeat(5)[: len(clean)].numpy()}
        for kind, sound in sounds.items():
            place = root / "voicebank" / f"{kind}_{part}_wav" / f"{item}.wav"
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, sound, rate)
    return root


def write_lists(root: Path, chosen: dict[str, list[list[Path]]]) -> None:
    """Write the lists of WSJ0-2Mix and WSJ0-3Mix."""
    (root / "lists").mkdir()
    for split, mixtures in chosen.items():
        for count, gains in ((2, (1.5, -1.5)), (3, (1.5, -1.5, 0))):
            rows = [
                " ".join(f"{path} {gain}" for path, gain in zip(mixture, gains))
                for mixture in mixtures
            ]
            (root / f"lists/mix_{count}_spk_{split}.txt").write_text("\n".join(rows))


def write_metadata(folder: Path, chosen: dict[str, list[list[Path]]]) -> None:
    """Write the metadata of Libri2Mix."""
    folder.mkdir()
    head = (
        "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain,noise_path,noise_gain"
    )
    for split, name in (("tr", "train-clean-100"), ("cv", "dev-clean"), ("tt", "test-clean")):
        rows = [
            f"{one.stem}_{two.stem},{one},0.7,{two},0.5,tr/noise.wav,0.9"
            for one, two, _ in chosen[split]
        ]
        (folder / f"libri2mix_{name}.csv").write_text("\n".join([head, *rows, ""]))


def add_rooms(dry: Path, rooms: Path) -> None:
    """Lay mixtures out as WHAMR! does; the noise and the room are of the simplest kind."""
    for path in dry.glob("*/mix/*.wav"):
        mixture, rate = soundfile.read(path, dtype="float32")
        echo = mixture.copy()
        echo[400:] += 0.3 * mixture[:-400]
        noise = 0.01 * torch.randn(len(mixture)).numpy()
        one, two = (
            soundfile.read(path.parents[1] / source / path.name)[0] for source in ("s1", "s2")
        )
        for signal, sound in (
            ("mix_both_reverb", echo + noise), ("s1_anechoic", one), ("s2_anechoic", two),
            ("noise", noise),
        ):  # fmt: skip
            place = rooms / path.parents[1].name / signal / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, sound, rate)


@pytest.fixture
def arguments(toy_corpus: Path, toy_mixtures: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that gives the command line of a YAML: small, on toy data."""

    def make(name: str) -> list[str]:
        assert name in SMALL, f"say in SMALL how {name}.yaml is made small"
        where = mixture_folders(name, toy_mixtures, toy_corpus)
        where += ["--corpus", str(tmp_path / "corpus"), "--output_folder", str(tmp_path / "run")]
        return [str(HPARAMS / f"{name}.yaml"), *where, *SMALL[name]]

    return make


def mixture_folders(name: str, mixtures: Path, speech: Path) -> list[str]:
    """Give the arguments that say where a separation YAML's corpus is."""
    if name.startswith("librimix"):
        return ["--metadata", str(mixtures / "metadata"), "--librispeech", str(speech)]
    if name.startswith("wsj0mix") and name.endswith("sepformer"):
        return ["--lists", str(mixtures / "lists"), "--wsj0", str(speech)]
    roots = {"wsj0mix": "", "whamr": "whamr", "voicebank": "voicebank"}
    return ["--root", str(mixtures / roots[name.partition("_")[0]])]


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_separator(
    yaml: Path,
    arguments: Callable[[str], list[str]],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    run(recipe("separation").Separation, [*arguments(yaml.stem), *ONE_EPOCH])
    check_separation(tmp_path / "run")
    row = read_rows(tmp_path / "run/test/test/rows.jsonl")[0]
    model = speechkit.load(tmp_path / "run/model")
    assert len(row["si_snri"]) == len(row["sources"]) == model.num_sources
    waveform, _ = read_audio(row["audio"], sample_rate=model.sample_rate)
    with torch.no_grad():
        estimates = model(waveform[None], torch.tensor([len(waveform)])).estimates[0]
    for path, estimate in zip(row["estimates"], estimates[row["order"]]):
        written, rate = read_audio(tmp_path / "run" / path)
        assert rate == model.sample_rate
        # Mixed precision rounds in the test, not here.
        assert (written - estimate).square().sum() < 1e-3 * estimate.square().sum()


def check_separation(folder: Path) -> None:
    """The numbers of RESULTS.json are those that the rows give, and the report has the sound."""
    scored = {(split, r.metric): r for split, r in score_folder(folder)}
    results = RunResults.read(folder / "RESULTS.json").results["test"]
    assert {r.metric for r in results} >= {"SI-SNRi", "SI-SNR"}
    for result in results:
        assert scored["test", result.metric].value == pytest.approx(result.value)
    report = (folder / "report.html").read_text()
    assert "<h2>Separation</h2>" in report
    assert report.count("<audio") >= 3


def test_a_noisy_libri2mix(
    arguments: Callable[[str], list[str]],
    toy_mixtures: Path,
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    """The command in the comment of the YAML."""
    command = arguments("librimix_sepformer")
    command += ["--mixture", "mix_both", "--noise", str(toy_mixtures / "wham_noise")]
    command += ["--mixing_noise", str(tmp_path / "corpus/train-noise.jsonl"), "--snr_db", "[0, 16]"]
    run(recipe("separation").Separation, [*command, *ONE_EPOCH])
    check_separation(tmp_path / "run")
    row = read_rows(tmp_path / "corpus/test.jsonl")[0]
    mixture, *parts = (read_audio(tmp_path / "corpus" / path)[0] for path in (
        row["audio"], *row["sources"], row["noise"]
    ))  # fmt: skip
    torch.testing.assert_close(mixture, torch.stack(parts).sum(dim=0), atol=1e-3, rtol=0)


def test_a_separator_on_another_corpus(
    arguments: Callable[[str], list[str]],
    tmp_path: Path,
    recipe: Callable[[str], ModuleType],
) -> None:
    """Trained on Libri2Mix, tested on WSJ0-2Mix, by a YAML of another network."""
    brain = recipe("separation").Separation
    run(brain, [*arguments("librimix_sepformer"), *ONE_EPOCH])
    there, other = tmp_path / "run/model", tmp_path / "other"
    command = arguments("wsj0mix_light_sepformer")
    command += ["--corpus", str(tmp_path / "wsj0mix"), "--output_folder", str(other)]
    # Only the test split is there.
    command += ["--prepare.splits", "{test: tt}", "--data.train", "null", "--data.valid", "null"]
    command += ["--data.train_transforms", "null", "--num_examples", "1"]
    run(brain, [*command, *ONE_EPOCH, "--test_only", "--init_from", str(there)])
    check_separation(other)
    assert len(list(other.glob("test/test/audio/*.wav"))) == 2
    assert not (tmp_path / "wsj0mix/2speakers/wav8k/min/tr").exists()
    assert not (other / "checkpoints").exists()
    assert not (other / "model").exists()
    assert all("wsj0mix" in row["audio"] for row in read_rows(other / "test/test/rows.jsonl"))


def test_a_model_of_another_number_of_sources(
    arguments: Callable[[str], list[str]],
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*arguments("librimix_sepformer"), *ONE_EPOCH, "--model.masker.num_sources", "3"]
    with pytest.raises(SystemExit):
        run(recipe("separation").Separation, command)
    shown = capsys.readouterr().err
    assert "the model gives 3 sources" in shown
    assert "--model.masker.num_sources 2" in shown
    assert "Traceback" not in shown
