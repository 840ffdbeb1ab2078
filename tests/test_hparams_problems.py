"""Problems in hyperparameters, all at once and with their lines; the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from speechkit.hparams import HparamsError, parse_command_line, read_hparams

BUILT: list[str] = []


class Part:
    """Something to build that notes it."""

    def __init__(self, *, size: int, rate: float = 0.1, items: Any = ()) -> None:
        BUILT.append("part")


class Whole:
    def __init__(self, *, part: Part, tokenizer: Part | None = None) -> None:
        BUILT.append("whole")


def prepare(folder: str) -> None:
    BUILT.append("prepare")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    BUILT.clear()
    monkeypatch.setitem(sys.modules, "toy_parts", sys.modules[__name__])


TOY = """\
seed: 1234
folder: results/toy  # where things go
manifest: !ref <folder>/train.jsonl
tokenizer: !new:toy_parts.Part
    size: 4
lr: 1e-3
model: !new:toy_parts.Whole
    part: !new:toy_parts.Part  # the encoder
        size: !ref <width> * 2
        items: [1, 2.5, a]
    tokenizer: !ref <tokenizer>
width: 8
optimizer: !name:torch.optim.AdamW
    lr: !ref <lr>
tests:
    - one
    - two: 2
"""
CONSUMED = [
    *("seed", "prepare", "model", "optimizer", "tests", "shape", "final_lr", "manifest"),
    *("tokenizer", "epochs", "decoder"),
]


def read(
    tmp_path: Path, text: str, overrides: dict[str, Any] | None = None, **options: Any
) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    read_hparams(path, overrides, **{"consumed": CONSUMED, **options})


def problems(tmp_path: Path, text: str, overrides: Any = None, **options: Any) -> list[str]:
    with pytest.raises(HparamsError) as caught:
        read(tmp_path, text, overrides, **options)
    assert BUILT == [], "something was built although there are problems"
    return [p.replace(str(tmp_path) + "/", "") for p in caught.value.problems]


def test_overrides_that_match_nothing(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        TOY,
        {"sed": "1", "size": "1", "model.part.sise": "1", "tests.2": "x", "width.x": "1",
         "lr": "[1", "model.part.rte": "1", "Z": "1"},
    )  # fmt: skip
    assert found[0].startswith("--sed: toy.yaml has no such key; did you mean 'seed'")
    assert "did you mean 'tokenizer.size'" in found[1] or "model.part.size" in found[1]
    assert "did you mean 'model.part.size'" in found[2]
    assert "has no such key" in found[3]
    assert "has no such key" in found[4]
    assert found[5].startswith("--lr: '[1' is not valid YAML")
    assert "did you mean 'model.part.rate'" in found[6]
    assert found[7] == "--Z: toy.yaml has no such key"
    assert len(found) == 8


# --- problems ------------------------------------------------------------------------------


def test_all_problems_at_once_with_lines(tmp_path: Path) -> None:
    text = """\
seed: !PLACEHOLDER  # any integer
# Where the corpus lies.
manifest: !PLACEHOLDER
tests: !PLACEHOLDER
modle: 3
model: !new:toy_parts.Whol
    part: 1
tokenizer: !new:toy_parts.Part
    sise: 4
decoder: !new:no_such_package.Thing {}
prepare: !apply:toy_parts.Part
shape: !new:toy_parts.prepare
final_lr: !ref <sede> * 2
epochs: 3
"""
    found = problems(tmp_path, text, {"tests": "x", "sede": "1"}, required=["optimizer", "seed"])
    assert found == [
        "toy.yaml:1: 'seed' is to be filled in: any integer; give --seed VALUE",
        "toy.yaml:3: 'manifest' is to be filled in: Where the corpus lies.; give --manifest VALUE",
        "toy.yaml:5: nothing uses 'modle'",
        "toy.yaml:6: 'model': !new:toy_parts.Whol: there is no 'Whol' in toy_parts; "
        "did you mean 'Whole'?",
        "toy.yaml:8: 'tokenizer': toy_parts.Part takes no argument 'sise'; did you mean 'size'?",
        "toy.yaml:8: 'tokenizer': toy_parts.Part needs size, which is not given",
        "toy.yaml:10: 'decoder': !new:no_such_package.Thing: there is no module 'no_such_package'",
        "toy.yaml:11: 'prepare': !apply:toy_parts.Part: is not a function; a class is built with "
        "!new:toy_parts.Part",
        "toy.yaml:12: 'shape': !new:toy_parts.prepare: is not a class; a function is called with "
        "!apply:toy_parts.prepare",
        "toy.yaml:13: 'final_lr': <sede> refers to no key; did you mean 'seed'?",
        "--sede: toy.yaml has no such key; did you mean 'seed'?",
        "toy.yaml: the key 'optimizer' is missing",
    ]
    with pytest.raises(HparamsError, match=r"^12 problems(.|\n)*\n  12\. "):
        read(tmp_path, text, {"tests": "x", "sede": "1"}, required=["optimizer", "seed"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !ref <seed>\n", "toy.yaml:1: 'seed' refers to itself"),
        ("seed: !ref <epochs>\nepochs: !ref <seed>\n", "refers to itself"),
        ("tests: {a: !ref <tests>}\n", "refers to itself"),
        ("seed: !ref nothing\n", "names nothing; write !ref <key>"),
        ("seed: !ref <a[b>\n", "not a reference"),
        ("seed: !ref <tests.a>\ntests: {a: 1}\n", "a part of a mapping is written <tests[a]>"),
        ("seed: !ref <epochs.a>\nepochs: 1\n", "has no attributes, as it is a plain value"),
        ("seed: !ref <tests[b]>\ntests: {a: 1}\n", "<tests[b]> refers to no key; did you mean"),
        ("seed: !ref <epochs>/x\nepochs:\n", "<epochs> is null, so it cannot be part of"),
        ("seed: !ref <tests>/x\ntests: [1]\n", "<tests> is no plain value"),
        ("seed: !ref <epochs> / 0\nepochs: 1\n", "cannot be computed: division by zero"),
        ("seed: !reff <epochs>\n", "the tag !reff is not known; there are !new:..."),
        ("seed: !!python/object/apply:os.system [x]\n", "is not known"),
        ("seed: !include:other.yaml\n", "is not known"),
        ("model: !new:toy_parts.Part 3\n", "takes arguments as 'name: value' lines, not '3'"),
        ("model: !new:toy_parts.Part [1]\n", "takes 0 arguments, not 1"),
        ("model: !new:torch.nn.Dropout [0.1, true, 3]\n", "takes 2 arguments, not 3"),
        ("model: !new:broken_module.Thing\n", "cannot be imported: ZeroDivisionError"),
        ("model: !module:toy_parts.Part\n", "is not a module"),
        ("model: !name:toy_parts.BUILT {a: 1}\n", "takes no arguments"),
        ("model: !name:toy_parts.Part {sise: 1}\n", "did you mean 'size'?"),
        ("model: !new:torch.nn.Identity {}\n5: 1\n", "toy.yaml:2: the top-level key 5 is no name"),
        ("seed: 1\nmodel:\n    a: 1\n    b: 2\n    a: 3\n", "toy.yaml:5: the key 'model.a' stands "
         "here again, first in line 3"),
        ("seed: 1\nseed: 2\n", "toy.yaml:2: the key 'seed' stands here again, first in line 1"),
    ],
)  # fmt: skip
def test_each_problem(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = problems(tmp_path, text)
    assert any(message in problem for problem in found), found
    assert len(found) <= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmodel:\n\tpart: 1\n", "toy.yaml:3: a tab in the indentation"),
        ("seed: [1\nmodel: 2\n", "toy.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("seed: a: b\n", "toy.yaml:1: not valid YAML: mapping values are not allowed"),
        ("- 1\n", "must hold 'key: value' lines"),
        ("", "must hold 'key: value' lines"),
        ("a: 1\n---\nb: 1\n", "toy.yaml:2: not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
    ],
)
def test_what_is_no_yaml(text: str, message: str, tmp_path: Path) -> None:
    assert message in problems(tmp_path, text)[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "toy_ctc.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(HparamsError, match=r"no file .*did you mean '.*toy_ctc.yaml'"):
        read_hparams(tmp_path / "toy_ct.yaml", {}, consumed=[])
    with pytest.raises(HparamsError, match="cannot be read"):
        read_hparams(tmp_path / "toy_ctc.yaml", {}, consumed=[])


def test_nothing_uses_keys_that_only_look_used(tmp_path: Path) -> None:
    found = problems(tmp_path, "seed: 1\nzzz: 2\nopt: 3\n# uses <zzz>\n")
    assert found == [
        "toy.yaml:2: nothing uses 'zzz'",
        "toy.yaml:3: nothing uses 'opt'; did you mean 'optimizer'?",
    ]


# --- the command line ----------------------------------------------------------------------

PROGRAM = {"flags": ["test_only", "debug"], "options": ["device", "init_from"]}


def test_command_line() -> None:
    line = "a.yaml --seed 2 --debug --model.part.size=6 --lr -1e-3 --device cuda:0 --x= --y a=b"
    path, overrides, options = parse_command_line(line.split(), **PROGRAM)
    assert path == Path("a.yaml")
    assert overrides == {
        "seed": "2", "model.part.size": "6", "lr": "-1e-3", "x": "", "y": "a=b"
    }  # fmt: skip
    assert options == {"test_only": False, "debug": True, "device": "cuda:0", "init_from": None}
    assert parse_command_line(["--debug", "a.yaml"], **PROGRAM)[0] == Path("a.yaml")


def test_command_line_problems_come_together() -> None:
    with pytest.raises(HparamsError) as caught:
        parse_command_line(["--seed", "--lr=1", "--debug=1", "--=3", "--device"], **PROGRAM)
    assert caught.value.problems == [
        "no YAML file: the first argument is recipes/.../hparams/NAME.yaml",
        "--seed: needs a value, --seed VALUE",
        "--debug=1: takes no value",
        "--=3: names no key",
        "--device: needs a value, --device VALUE",
    ]
    with pytest.raises(HparamsError, match=r"'b\.yaml': a stray argument"):
        parse_command_line(["a.yaml", "b.yaml"], **PROGRAM)
    with pytest.raises(HparamsError, match=r"needs a value.*did you mean 'test_only'"):
        parse_command_line(["a.yaml", "--testonly"], **PROGRAM)


def test_help_lists_keys_values_and_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    with pytest.raises(SystemExit) as stop:
        parse_command_line([str(tmp_path / "toy.yaml"), "--help"], **PROGRAM)
    assert stop.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert "  --test_only" in shown
    assert "  --device VALUE" in shown
    assert "  --seed 1234" in shown
    assert any(
        "--folder results/toy " in row and row.endswith("# where things go") for row in shown
    )
    assert any(
        "--model.part !new:toy_parts.Part" in row and "# the encoder" in row for row in shown
    )
    assert "  --model.part.size !ref <width> * 2" in shown
    assert "  --model.part.items [1, 2.5, 'a']" in shown
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], **PROGRAM)
    assert "usage:" in capsys.readouterr().out
