"""Hyperparameters: checks, overrides, and building in stages."""

from __future__ import annotations

import collections
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechkit.hparams import Hparams, HparamsError, changes, read_hparams

BUILT: list[str] = []


class Part:
    """Something to build that notes it."""

    def __init__(
        self, *, size: int, name: str = "part", rate: float = 0.1, items: Any = ()
    ) -> None:
        BUILT.append(name)
        self.size = size
        self.name = name
        self.rate = rate
        self.items = items
        self.vocab_size = size + 1


class Whole:
    def __init__(self, *, part: Part, tokenizer: Part | None = None, vocab: int = 0) -> None:
        BUILT.append("whole")
        self.part = part
        self.tokenizer = tokenizer
        self.vocab = vocab


def prepare(folder: str, name: str = "x") -> str:
    BUILT.append(f"prepare {folder}")
    return folder


def explode(**_: Any) -> None:
    raise RuntimeError("exploded")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    BUILT.clear()
    monkeypatch.setitem(sys.modules, "toy_parts", sys.modules[__name__])


TOY = """\
# A toy recipe.
seed: 1234
folder: results/toy  # where things go
manifest: !ref <folder>/train.jsonl
prepare: !apply:toy_parts.prepare
    folder: !ref <folder>
tokenizer: !new:toy_parts.Part
    size: 4
    name: tokenizer
lr: 1e-3
final_lr: !ref <lr> / 2
model: !new:toy_parts.Whole
    part: !new:toy_parts.Part  # the encoder
        size: !ref <width> * 2
        items: [1, 2.5, a]
    tokenizer: !ref <tokenizer>
    vocab: !ref <tokenizer.vocab_size>
width: 8
optimizer: !name:torch.optim.AdamW
    lr: !ref <lr>
tests:
    - one
    - two: 2
shape: (3, 4)
"""
CONSUMED = [
    "seed",
    "prepare",
    "model",
    "optimizer",
    "tests",
    "shape",
    "final_lr",
    "manifest",
    "tokenizer",
    "epochs",
    "decoder",
]


def read(
    tmp_path: Path, text: str, overrides: dict[str, Any] | None = None, **options: Any
) -> Hparams:
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return read_hparams(path, overrides, **{"consumed": CONSUMED, **options})


# --- values and building -------------------------------------------------------------------


def test_values_before_anything_is_built(tmp_path: Path) -> None:
    hparams = read(tmp_path, TOY)
    assert hparams.value("seed") == 1234
    assert hparams.value("manifest") == "results/toy/train.jsonl"
    assert hparams.value("final_lr") == 0.0005
    assert hparams.value("model.part.size") == 16
    assert hparams.value("shape") == (3, 4)
    assert hparams.value("tests") == ["one", {"two": 2}]
    assert hparams.value("tests.1.two") == 2
    assert hparams.value("nothing", default=None) is None
    assert "model" in hparams
    assert "nothing" not in hparams
    with pytest.raises(KeyError, match="did you mean 'seed'"):
        hparams.value("sed")
    with pytest.raises(TypeError, match="holds an object"):
        hparams.value("model")
    assert BUILT == []


def test_build_everything(tmp_path: Path) -> None:
    built = read(tmp_path, TOY).build()
    assert list(built)[:3] == ["seed", "folder", "manifest"]
    assert built["model"].tokenizer is built["tokenizer"]
    assert built["model"].vocab == 5
    assert built["model"].part.size == 16
    assert built["model"].part.items == [1, 2.5, "a"]
    assert isinstance(built["optimizer"], partial)
    assert built["optimizer"].keywords == {"lr": 1e-3}
    assert built["shape"] == (3, 4)
    assert built["prepare"] == "results/toy"


def test_build_in_stages(tmp_path: Path) -> None:
    hparams = read(tmp_path, TOY)
    assert hparams.build(["prepare"]) == {"prepare": "results/toy"}
    assert BUILT == ["prepare results/toy"]
    tokenizer = hparams.build(["tokenizer", "epochs"])["tokenizer"]
    assert BUILT == ["prepare results/toy", "tokenizer"]
    model = hparams.build(["model"])["model"]
    assert BUILT == ["prepare results/toy", "tokenizer", "part", "whole"]
    assert model.tokenizer is tokenizer
    everything = hparams.build()
    assert BUILT == ["prepare results/toy", "tokenizer", "part", "whole"]
    assert everything["model"] is model
    assert everything["tokenizer"] is tokenizer


def test_a_nested_object_that_is_referred_to_stays_one_over_stages(tmp_path: Path) -> None:
    text = """\
model: !new:toy_parts.Whole
    part: !new:toy_parts.Part {size: 1}
decoder: !new:toy_parts.Whole
    part: !ref <model[part]>
tests: !ref <model.part.size>
tokenizer: !copy <model[part]>
"""
    hparams = read(tmp_path, text)
    decoder = hparams.build(["decoder"])["decoder"]
    assert BUILT == ["part", "whole"]
    built = hparams.build()
    assert built["model"].part is decoder.part is built["decoder"].part
    assert built["tests"] == 1
    assert built["tokenizer"] is not decoder.part
    assert BUILT == ["part", "whole", "whole", "part"]


def test_objects_without_arguments_are_shared_and_forward_chains_resolve(tmp_path: Path) -> None:
    text = """\
model: !ref <decoder>
decoder: !ref <tests>
tests: !new:collections.Counter
manifest: !ref <seed>/x
seed: !ref <epochs>
epochs: 7
"""
    built = read(tmp_path, text).build()
    assert built["model"] is built["decoder"] is built["tests"]
    assert built["tests"] == collections.Counter()
    assert built["manifest"] == "7/x"


def test_lists_can_be_referred_to_and_hidden_keys_are_not_returned(tmp_path: Path) -> None:
    text = "__sizes: [1, 2]\ntests: !ref <__sizes>\nseed: !ref <__sizes[1]>\n"
    assert read(tmp_path, text).build() == {"tests": [1, 2], "seed": 2}


def test_an_object_that_fails_leaves_the_parsers_as_they_were(tmp_path: Path) -> None:
    before = ruamel.yaml.constructor.BaseConstructor.construct_object.__defaults__
    hparams = read(tmp_path, "model: !apply:toy_parts.explode {a: 1}\n")
    with pytest.raises(RuntimeError, match="exploded"):
        hparams.build()
    assert ruamel.yaml.constructor.BaseConstructor.construct_object.__defaults__ == before
    assert not [r for r in ruamel.yaml.resolver.implicit_resolvers if r[1] == "!tuple"]
    assert "!built" not in ruamel.yaml.Loader.yaml_constructors


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        lambda children: (
            st.lists(children, max_size=3)
            | st.dictionaries(st.text("abcd_", min_size=1), children, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_values_survive(tmp_path: Path, value: Any) -> None:
    def quoted(v: Any) -> Any:
        if isinstance(v, str):
            return ruamel.yaml.scalarstring.DoubleQuotedScalarString(v)
        if isinstance(v, list):
            return [quoted(x) for x in v]
        return {k: quoted(x) for k, x in v.items()} if isinstance(v, dict) else v

    yaml = ruamel.yaml.YAML()
    yaml.width = 2**16
    with (tmp_path / "toy.yaml").open("w", encoding="utf-8") as file:
        yaml.dump({"tests": quoted(value)}, file)
    hparams = read_hparams(tmp_path / "toy.yaml", {"epochs": "3"}, consumed=["tests", "epochs"])
    assert hparams.value("tests") == value
    assert hparams.build() == {"tests": value, "epochs": 3}
    again = read(tmp_path, hparams.text)
    assert again.value("tests") == value
    assert changes(hparams.flat(), again.flat()) == []


# --- overrides -----------------------------------------------------------------------------


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    hparams = read(
        tmp_path,
        TOY,
        {
            "width": "3",
            "model.part.items.1": "[x, 7]",
            "model.tokenizer.size": "10",  # through !ref <tokenizer>
            "model.part.rate": "0.5",  # an argument left at its default in the file
            "tests.0": "first",
            "epochs": "3",  # consumed, though not in the file
            "final_lr": "null",
            "optimizer": "!name:torch.optim.SGD {lr: 1}",
        },
    )
    built = hparams.build()
    assert built["model"].part.size == 6
    assert built["model"].part.items == [1, ["x", 7], "a"]
    assert built["model"].part.rate == 0.5
    assert built["tokenizer"].size == 10
    assert built["model"].vocab == 11
    assert built["tests"] == ["first", {"two": 2}]
    assert built["epochs"] == 3
    assert "lr" not in built, "nothing uses it any more"
    assert built["final_lr"] is None
    assert built["optimizer"].func.__name__ == "SGD"


def test_what_only_an_overridden_value_used_goes_with_it(tmp_path: Path) -> None:
    text = "model: !new:torch.nn.Dropout\n    p: !ref <p>\np: !ref <q> / 2\nq: 1\nseed: 1\n"
    hparams = read(tmp_path, text, {"model": "null"})
    assert hparams.keys() == ["model", "seed"]
    assert read(tmp_path, hparams.text).flat() == hparams.flat()
    with pytest.raises(HparamsError, match=r"toy\.yaml:4: nothing uses 'q'"):
        read(tmp_path, text, {"model.p": "0.1", "q": "3"})


def test_text_keeps_comments_and_gives_the_same_again(tmp_path: Path) -> None:
    assert read(tmp_path, TOY).text == TOY
    hparams = read(tmp_path, TOY, {"folder": "else where", "model.part.rate": "0.5"})
    assert "# A toy recipe." in hparams.text
    assert re.search("folder: else where +# where things go", hparams.text)
    assert "part: !new:toy_parts.Part  # the encoder" in hparams.text
    assert "manifest: !ref <folder>/train.jsonl" in hparams.text
    again = read(tmp_path, hparams.text)
    assert again.flat() == hparams.flat()
    assert again.text == hparams.text


def test_an_argument_can_be_given_to_an_object_without_any(tmp_path: Path) -> None:
    text = "model: !new:torch.nn.Dropout  # drops\ntests:\n    - !new:torch.nn.Dropout\n"
    hparams = read(tmp_path, text, {"model.p": "0.25", "tests.0.p": "0.125"})
    assert hparams.build()["model"].p == 0.25
    assert hparams.build()["tests"][0].p == 0.125
    assert read(tmp_path, hparams.text).build()["model"].p == 0.25


# --- flat and changes ----------------------------------------------------------------------


def test_flat_and_changes(tmp_path: Path) -> None:
    flat = read(tmp_path, TOY).flat()
    assert flat["model"] == "!new:toy_parts.Whole"
    assert flat["model.part.size"] == 16
    assert flat["model.part.items"] == [1, 2.5, "a"]
    assert flat["model.tokenizer"] == "!ref <tokenizer>"
    assert flat["model.vocab"] == "!ref <tokenizer.vocab_size>"
    assert flat["manifest"] == "results/toy/train.jsonl"
    assert flat["shape"] == "(3, 4)"
    assert json.loads(json.dumps(flat)) == flat
    assert flat["tests.0"] == "one"
    assert flat["tests.1.two"] == 2
    other = read(tmp_path, TOY, {"width": "9", "model.part.rate": "0.3", "seed": "1234"}).flat()
    assert changes(flat, other) == [
        ("model.part.size", 16, 18),
        ("width", 8, 9),
        ("model.part.rate", "(absent)", 0.3),
    ]
    assert changes({"a": 1}, {"a": 1.0}) == []
    assert changes({"a": 1}, {"a": True}) == [("a", 1, True)]
    assert changes({"a": float("nan")}, {"a": float("nan")}) == []
