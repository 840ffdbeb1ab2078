"""Hostile model folders: each is refused with PretrainedError, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speechkit
from speechkit import pretrained
from speechkit.data.tokenizer import CharTokenizer
from speechkit.model_folder import safety
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack
from speechkit.pretrained import MismatchError, PretrainedError


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder, to be spoilt."""
    encoder = RecurrentEncoder(input_size=2, hidden_size=3, num_layers=1)
    speechkit.save(Stack(layers=[encoder]), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refused(folder: Path, sentinel: Path, message: str) -> None:
    loaded = set(sys.modules)
    for attempt in (speechkit.load, lambda source: pretrained.load(str(source))):
        with pytest.raises(PretrainedError, match=message):
            attempt(folder)
    assert not sentinel.exists(), "the folder executed something"
    new = {name for name in set(sys.modules) - loaded if not name.startswith("speechkit")}
    assert not new & {"antigravity", "this", "evil"}


HOSTILE_CLASSES = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Module",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.init.os.system",
    "torch.nn.Sequential",
    "speechkit.pretrained.os.system",
    "speechkit.pretrained.load",
    "speechkit.nn.rnn.torch.load",
    "speechkit.nn.rnn.nn.Linear",
    "speechkit.nn.rnn.Tensor",
    "speechkit.nn.rnn.Padded",
    "speechkit.nn.stack.RecurrentEncoder",
    "speechkit.nn.rnn.RecurrentEncoder.__init__",
    "speechkit.nn.rnn.RecurrentEncoder.__class__",
    "speechkit.nn.rnn.__builtins__",
    "speechkit.nn.rnn.__loader__",
    "speechkit.nn.__init__.os",
    "speechkit.nn..rnn.RecurrentEncoder",
    "speechkit.run.run",
    "speechkit.cli.main",
    "speechkit.hparams.Hparams",
    "speechkit.data.tokenizer.DataError",
    "speechkit.data.tokenizer.Path",
    "speechkit.nn.nowhere.Thing",
    "speechkit.nn.evil.Evil",
    "speechkit.nnevil.Evil",
    "evil.Evil",
    "this.Thing",
    "antigravity.Thing",
    "",
    ".",
    "os",
    "speechkit",
    "../evil.Evil",
    "speechkit.nn.rnn.RecurrentEncoder\n",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", HOSTILE_CLASSES, ids=lambda name: repr(name[:50]))
@pytest.mark.parametrize("nested", [False, True])
def test_classes_outside_the_allow_list(
    name: str,
    nested: bool,
    folder: Path,
    sentinel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(sentinel)!r}, 'w').close()\nclass Evil: pass\n")
    (folder / "evil.py").write_text((tmp_path / "evil.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(folder)
    args = {"command": f"touch {sentinel}"}

    def change(config: dict[str, Any]) -> None:
        if nested:
            config["model"]["args"]["layers"] = [{"class": name, "args": args}]
        else:
            config["model"] = {"class": name, "args": args}

    edit(folder, change)
    refused(folder, sentinel, "not allowed|must be a string")


@pytest.mark.parametrize("name", [7, None, ["os", "system"], {"class": "os.system"}, True])
def test_class_names_of_other_types(name: object, folder: Path, sentinel: Path) -> None:
    edit(folder, lambda config: config["model"].update({"class": name}))
    refused(folder, sentinel, "must be a string")


def test_resolving_imports_no_other_module() -> None:
    program = (
        "import sys, speechkit.pretrained as p\n"
        "before = set(sys.modules)\n"
        f"for name in {HOSTILE_CLASSES!r}:\n"
        "    try: p.build({'class': name, 'args': {}})\n"
        "    except p.PretrainedError: continue\n"
        "    raise SystemExit(f'{name} was built')\n"
        "new = {n for n in set(sys.modules) - before if n.split('.')[0] in \n"
        "       ('antigravity', 'this', 'evil', 'subprocess') or n in ('speechkit.cli', "
        "'speechkit.run')}\n"
        "raise SystemExit(f'imported {new}' if new else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(speechkit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "model.ckpt", "model.pkl"])
def test_pickled_weights_are_not_a_fallback(name: str, folder: Path, sentinel: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(sentinel), folder / name)
    refused(folder, sentinel, "is a pickle, which is never read")
    refused(folder / name, sentinel, "pickles")
    with pytest.raises(PretrainedError, match="pickle"):
        pretrained.load_state(nn.Linear(1, 1), folder)
    assert not sentinel.exists()


def test_a_pickle_under_the_name_of_safetensors(folder: Path, sentinel: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(sentinel)) * 10)
    refused(folder, sentinel, "not a safetensors file")


def tokenizer_folder(folder: Path, entry: dict[str, Any]) -> None:
    arguments = {"class": "speechkit.data.tokenizer.SentencePieceTokenizer"}
    model = {**arguments, "args": {"model": entry}}
    edit(folder, lambda config: config["model"]["args"].update(layers=[model]))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.model",
        "..",
        "sub/secret.model",
        "{outside}",
        "..\\secret.model",
        "C:\\secret.model",
        "\x00.model",
        "-.model\n",
        "weights.pt",
        "weights.pkl",
        "config.json",
        "link.model",
        "hard.model/../link.model",
        "folder.model",
        "missing.model",
        "pipe.model",
        7,
        None,
        ["a.model"],
    ],
)
def test_file_arguments_stay_in_the_folder(
    name: Any, folder: Path, sentinel: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.model"
    secret.write_bytes(b"secret")
    (folder / "link.model").symlink_to(secret)
    (folder / "folder.model").mkdir()
    os.mkfifo(folder / "pipe.model")
    (folder / "weights.pt").write_bytes(pickle.dumps(Bomb(sentinel)))
    if name == "{outside}":
        name = str(secret)
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    tokenizer_folder(folder, {"file": name, "sha256": digest})
    refused(folder, sentinel, "plain file name|must end in|leaves|regular|no file")


def test_damaged_file_arguments(folder: Path, sentinel: Path) -> None:
    (folder / "t.model").write_bytes(b"other bytes")
    tokenizer_folder(folder, {"file": "t.model", "sha256": "0" * 64})
    refused(folder, sentinel, "damaged")
    tokenizer_folder(folder, {"file": "t.model"})
    refused(folder, sentinel, "needs 'file' and 'sha256'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_folders_own_files_may_not_be_links_out_of_it(
    name: str, folder: Path, sentinel: Path, tmp_path: Path
) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    refused(folder, sentinel, "leaves the model folder")


def test_yaml_is_not_read(folder: Path, sentinel: Path) -> None:
    (folder / "config.json").unlink()
    for name in ("config.yaml", "hyperparams.yaml"):
        tag = "!!python/object/apply:os.system"
        (folder / name).write_text(f"model: {tag} ['touch {sentinel}']\n")
    refused(folder, sentinel, "YAML can name any code")


def test_yaml_under_the_name_of_json(folder: Path, sentinel: Path) -> None:
    text = f"model: !!python/object/apply:os.system ['touch {sentinel}']\n"
    (folder / "config.json").write_text(text)
    refused(folder, sentinel, "not valid JSON")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"format": 1, "model": ' + '{"a":' * 500 + "1" + "}" * 500 + "}", "nested"),
        ("[]", "must be a JSON object"),
        ("", "not valid JSON"),
        ('{"format": NaN}', "NaN is not JSON"),
        ('{"format": 1, "format": 1}', "occur twice: format"),
        ("1" * 10_000, "JSON"),
        ('"\ud800"', "JSON"),
        ("{}", "'format' must be a number"),
        ('{"format": true}', "'format' must be a number"),
        ('{"format": "1"}', "'format' must be a number"),
        ('{"format": 2, "speechkit_version": "9.0"}', "format 2, written by speechkit 9.0"),
        ('{"format": 1}', "'model' must be an object"),
        ('{"format": 1, "model": []}', "'model' must be an object"),
        ('{"format": 1, "model": {"class": "torch.nn.ReLU", "args": []}}', "must be objects"),
        ('{"format": 1, "model": {"class": "torch.nn.ReLU", "args": {}, "x": 1}}', "'model'"),
    ],
    ids=range(16),
)
def test_configs_that_are_none(text: str, message: str, folder: Path, sentinel: Path) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(folder, sentinel, message)


def test_a_huge_config(folder: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(safety.MAX_CONFIG_BYTES + 1)
    refused(folder, sentinel, "at most")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layers": 3}, "cannot be built: TypeError"),
        ({"layers": [3]}, "cannot be built"),
        ({"layers": ["os.system"]}, "cannot be built"),
        ({}, "cannot be built: TypeError"),
        ({"layers": [], "evil": 1}, "takes no argument evil"),
        ({"self": 1}, "takes no argument self"),
        ({"layers": {"class": "os.system"}}, "needs 'class' and 'args'"),
        ({"layers": {"tuple": 3}}, "not a value"),
        ({"layers": {"float": "__import__('os')"}}, "not a value"),
        ({"layers": {"args": {}}}, "not a value"),
    ],
)
def test_arguments_of_wrong_types(
    args: dict[str, Any], message: str, folder: Path, sentinel: Path
) -> None:
    edit(folder, lambda config: config["model"].update(args=args))
    refused(folder, sentinel, message)


def test_a_tokenizer_is_no_model(folder: Path, sentinel: Path) -> None:
    model = pretrained.describe(CharTokenizer(symbols=["a"]))
    edit(folder, lambda config: config.update(model=model))
    refused(folder, sentinel, "is not a model")


# --- weights -------------------------------------------------------------------------------


def header_and_data(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_weights(folder: Path, header: str, data: bytes) -> None:
    encoded = header.encode()
    content = len(encoded).to_bytes(8, "little") + encoded + data
    (folder / "model.safetensors").write_bytes(content)


def test_duplicate_tensor_names(folder: Path, sentinel: Path) -> None:
    header, data = header_and_data(folder)
    name = next(name for name in header if name != "__metadata__")
    text = json.dumps(header)
    write_weights(folder, text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}", data)
    refused(folder, sentinel, "occur twice")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights(kept: int, folder: Path, sentinel: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, sentinel, "truncated|damaged|JSON")


@pytest.mark.parametrize("size", [2**63, 2**40, 1])
def test_a_header_of_an_impossible_size(size: int, folder: Path, sentinel: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, sentinel, "not a safetensors file")


@pytest.mark.parametrize(
    "entry",
    [7, {}, {"dtype": "F32"}, {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
     {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]},
     {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]},
     {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]}],
)  # fmt: skip
def test_tensors_that_are_not_described(entry: Any, folder: Path, sentinel: Path) -> None:
    header, data = header_and_data(folder)
    header["extra"] = entry
    write_weights(folder, json.dumps(header), data)
    refused(folder, sentinel, "not described|damaged")


def test_missing_unexpected_and_misshapen_tensors(folder: Path, sentinel: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    names = list(state)
    del state[names[0]]
    state[names[1]] = torch.zeros(1)
    state["stray"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(MismatchError) as caught:
        speechkit.load(folder)
    assert {row.name for row in caught.value.rows} == {names[0], names[1], "stray"}
    assert "reinit" not in str(caught.value)


def test_nan_weights_are_warned_of(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    name = next(iter(state))
    state[name][0] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=f"NaN or infinite weights in {name}"):
        speechkit.load(folder)
