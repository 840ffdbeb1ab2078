"""Model folders: round trips, partial loading, hub ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import speechkit
from speechkit import pretrained
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.pretrained import MismatchError, PretrainedError


class Tokens:
    """A toy tokenizer with a model of bytes."""

    def __init__(self, *, model: bytes, names: dict[str, int] | None = None) -> None:
        self.model = model
        self.names = names

    @property
    def vocab_size(self) -> int:
        return len(self.model)


class Toy(nn.Module):
    """A toy model over an encoder of speechkit."""

    def __init__(
        self,
        *,
        encoder: nn.Module,
        tokenizer: Tokens,
        activation: nn.Module,
        sizes: tuple[int, ...] = (1,),
        top: float = float("inf"),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.activation = activation
        self.sizes = sizes
        self.top = top
        self.head = nn.Linear(encoder.output_size, tokenizer.vocab_size)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.activation(self.encoder(x, lengths).data))


@pytest.fixture(autouse=True)
def _allowed() -> None:
    pretrained.allow(Toy)
    pretrained.allow(Tokens)


def toy(model: bytes = b"abcd", hidden_size: int = 3) -> Toy:
    return Toy(
        encoder=RecurrentEncoder(input_size=2, hidden_size=hidden_size, num_layers=1),
        tokenizer=Tokens(model=model, names={"a": 1}),
        activation=nn.LeakyReLU(0.3),
        sizes=(1, 2),
    )


INPUTS = (torch.linspace(-1, 1, 20).reshape(1, 10, 2), torch.tensor([10]))


def test_round_trip_gives_identical_outputs_and_arguments(tmp_path: Path) -> None:
    model = toy().train()
    speechkit.save(model, tmp_path / "model", extra={"recipe": "toy", "wer": 2.5})
    assert model.training
    loaded = speechkit.load(tmp_path / "model")
    assert not loaded.training
    assert torch.equal(loaded(*INPUTS), model.eval()(*INPUTS))
    assert (loaded.sizes, loaded.top, loaded.tokenizer.model) == ((1, 2), float("inf"), b"abcd")
    assert loaded.tokenizer.names == {"a": 1}
    assert loaded.activation.negative_slope == 0.3
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model", "README.md"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "speechkit.load(" in card
    assert "**recipe**" in card
    assert pretrained.read_config(tmp_path / "model")["extra"] == {"recipe": "toy", "wer": 2.5}


def test_a_fresh_process_gives_identical_outputs(tmp_path: Path) -> None:
    model = Stack(
        layers=[
            RecurrentEncoder(input_size=2, hidden_size=4, num_layers=1),
            RecurrentEncoder(input_size=8, hidden_size=3, num_layers=1, cell="gru"),
        ]
    ).eval()
    speechkit.save(model, tmp_path / "model")
    torch.save(INPUTS, tmp_path / "inputs.pt")
    program = (
        "import sys, torch, speechkit\n"
        "model = speechkit.load(sys.argv[1])\n"
        "torch.save(model(*torch.load(sys.argv[2])).data, sys.argv[3])\n"
    )
    paths = [str(tmp_path / name) for name in ("model", "inputs.pt", "out.pt")]
    environment = {**os.environ, "PYTHONPATH": str(Path(speechkit.__file__).parents[1])}
    subprocess.run(
        [sys.executable, "-c", program, *paths], check=True, cwd=tmp_path, env=environment
    )
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(*INPUTS).data)


def test_tied_weights_and_half_precision_tensors_are_kept(tmp_path: Path) -> None:
    model = toy()
    model.head.weight = nn.Parameter(torch.ones(4, 6))
    model.activation = nn.PReLU()
    model.head.half()
    speechkit.save(model, tmp_path / "model")
    assert torch.equal(speechkit.load(tmp_path / "model").head.weight, torch.ones(4, 6))


def test_save_replaces_a_model_folder_but_nothing_else(tmp_path: Path) -> None:
    speechkit.save(toy(), tmp_path / "model")
    speechkit.save(toy(b"abcdef"), tmp_path / "model")
    assert speechkit.load(tmp_path / "model").tokenizer.model == b"abcdef"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(PretrainedError, match="not a model folder"):
        speechkit.save(toy(), tmp_path / "notes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes"]


def test_a_save_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speechkit.save(toy(), tmp_path / "model")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        speechkit.save(toy(b"abcdef"), tmp_path / "model")
    assert speechkit.load(tmp_path / "model").tokenizer.model == b"abcd"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_killed_between_its_renames_says_where_the_old_model_is(tmp_path: Path) -> None:
    speechkit.save(toy(), tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.old")
    with pytest.raises(PretrainedError, match=r"interrupted save.*\.model\.old"):
        speechkit.load(tmp_path / "model")


class Forgetful(nn.Module):
    def __init__(self, *, size: int) -> None:
        super().__init__()


class Starred(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Forgetful(size=3), "does not keep its constructor's argument 'size'"),
        (Starred(), r"takes \*options"),
        (nn.Sequential(nn.ReLU()), "'torch.nn.Sequential' is not allowed"),
        (Stack(layers=[nn.Conv1d(1, 1, 1)]), None),
    ],
)
def test_what_cannot_be_described_is_refused(
    model: nn.Module, message: str | None, tmp_path: Path
) -> None:
    pretrained.allow(Forgetful)
    pretrained.allow(Starred)
    if message is None:
        speechkit.save(model, tmp_path / "model")
        return
    with pytest.raises(PretrainedError, match=message):
        speechkit.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_module_with_weights_in_two_places_is_refused() -> None:
    encoder = RecurrentEncoder(input_size=6, hidden_size=3, num_layers=1)
    with pytest.raises(PretrainedError, match=r"already used as model\.layers\.0"):
        pretrained.describe(Stack(layers=[encoder, encoder]))


def test_a_class_that_is_not_allowed_is_named() -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(PretrainedError, match="Local' is not allowed"):
        pretrained.describe(Local())


def test_describe_and_build_are_inverse_in_memory() -> None:
    description = pretrained.describe(toy())
    assert pretrained.describe(pretrained.build(description)) == description


# --- init_from -----------------------------------------------------------------------------


def test_load_state_takes_what_fits_and_leaves_what_is_named(tmp_path: Path) -> None:
    speechkit.save(toy(), tmp_path / "model")
    old, new = speechkit.load(tmp_path / "model"), toy(b"abcdefgh")
    head = new.head.weight.clone()
    report = pretrained.load_state(new, tmp_path / "model", reinit=["head"])
    assert report.fresh == ["head.weight", "head.bias"]
    assert torch.equal(new.head.weight, head)
    for name, tensor in old.encoder.state_dict().items():
        assert torch.equal(tensor, new.encoder.state_dict()[name])
    assert set(report.loaded) == {n for n in new.state_dict() if not n.startswith("head")}


def test_a_mismatch_is_a_table_and_changes_nothing(tmp_path: Path) -> None:
    speechkit.save(toy(), tmp_path / "model")
    new = toy(b"abcdefgh")
    new.gate = nn.Linear(1, 1, bias=False)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    state = dict(toy().state_dict(), old_part=torch.zeros(2), count=torch.tensor(0.5))
    with pytest.raises(MismatchError) as caught:
        pretrained.load_state(new, state)
    rows = {row.name: (row.here, row.there) for row in caught.value.rows}
    assert rows == {
        "head.weight": ("(8, 6)", "(4, 6)"),
        "head.bias": ("(8)", "(4)"),
        "gate.weight": ("(1, 1)", None),
        "old_part": (None, "(2)"),
        "count": ("() int64", "()"),
    }
    assert "head.weight  (8, 6)    (4, 6)" in str(caught.value)
    assert "reinit: [count, head, gate, old_part]" in str(caught.value)
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, before[name])
    report = pretrained.load_state(new, state, reinit=["count", "gate", "head", "old_part"])
    assert "gate.weight" in report.fresh


def test_a_prefix_that_names_nothing_is_an_error_with_the_nearest() -> None:
    model = toy()
    for reinit in (["heads"], ["hea"], "heads"):
        with pytest.raises(PretrainedError, match="did you mean 'head'"):
            pretrained.load_state(model, model.state_dict(), reinit=reinit)


# --- hub -----------------------------------------------------------------------------------


def hub_cache(folder: Path) -> Path:
    """Make a hub's cache, where a snapshot's files are links to blobs beside it."""
    speechkit.save(toy(), folder / "saved")
    snapshot = folder / "models--org--toy" / "snapshots" / "abc"
    blobs = folder / "models--org--toy" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((folder / "saved").iterdir())):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob{number}")
    return snapshot


def fake_hub(monkeypatch: pytest.MonkeyPatch, snapshot: Path | Exception) -> list[dict]:
    calls: list[dict] = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        calls.append({"repo_id": repo_id, **options})
        if isinstance(snapshot, Exception):
            raise snapshot
        return str(snapshot)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_a_hub_id_is_fetched_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, hub_cache(tmp_path))
    model = speechkit.load("org/toy", revision="v1")
    assert isinstance(model, Toy)
    assert calls == [
        {
            "repo_id": "org/toy",
            "revision": "v1",
            "allow_patterns": ["config.json", "model.safetensors", "README.md", "*.model"],
        }
    ]


def test_a_link_out_of_the_hub_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_cache(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (snapshot / "tokenizer.model").unlink()
    (snapshot / "tokenizer.model").symlink_to(secret)
    fake_hub(monkeypatch, snapshot)
    with pytest.raises(PretrainedError, match="leaves the model folder"):
        speechkit.load("org/toy")


def test_a_hub_that_fails_or_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ConnectionError("no route to host"))
    with pytest.raises(PretrainedError, match=r"no such folder here, and fetching.*no route"):
        speechkit.load("org/toy")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match=r"pip install 'speechkit\[hub\]'"):
        speechkit.load("org/toy")


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="no such folder"):
        speechkit.load(tmp_path / "nothing")
    with pytest.raises(PretrainedError, match="no such folder"):
        speechkit.load("nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PretrainedError, match="give the model folder"):
        speechkit.load(tmp_path / "config.json")


def test_the_config_is_readable_json(tmp_path: Path) -> None:
    speechkit.save(toy(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["format"] == 1
    assert config["speechkit_version"] == speechkit.__version__
    assert config["model"]["args"]["encoder"]["class"] == "speechkit.nn.rnn.RecurrentEncoder"
    assert config["model"]["args"]["tokenizer"]["args"]["model"]["file"] == "tokenizer.model"
