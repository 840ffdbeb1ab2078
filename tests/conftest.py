"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

# The cases are tiny: threads, in this process or in those that tests start, would only wait for
# each other, on a busy machine for minutes.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no reason for a property to fail.
# The same cases in every run: a change fails by what it changes.
settings.register_profile("speechkit", deadline=None, derandomize=True)
settings.load_profile("speechkit")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real audio, or skip the test where there is none."""
    candidates = [Path(os.environ["SPEECHKIT_DATA"])] if "SPEECHKIT_DATA" in os.environ else []
    candidates.append(Path(__file__).parents[2] / "shared" / "data")
    for folder in candidates:
        if (folder / "README.md").is_file():
            return folder
    pytest.skip("no real audio: set SPEECHKIT_DATA to the folder that holds it")


@pytest.fixture(scope="module", autouse=True)
def _no_lazy_modules() -> Iterator[None]:
    """Forget the modules that SpeechBrain would import at a touch.

    hypothesis looks at every loaded module, and that import fails without optional packages.
    """
    yield
    for name, module in list(sys.modules.items()):
        lazy = {cls.__name__ for cls in type(module).__mro__} & {"LazyModule"}
        if name.startswith("speechbrain.") and lazy:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small embedded corpus: ``root/{train,dev,test}`` and ``root/manifests``."""
    pytest.importorskip("espeakng_loader")
    from speechkit.datasets import toy

    root = tmp_path_factory.mktemp("toy")
    toy.prepare(root, root / "manifests", num_train=24, num_dev=6, num_test=6)
    return root


@pytest.fixture(scope="session")
def recipe() -> Callable[[str], ModuleType]:
    """Return a function that imports ``recipes/<task>/train.py``."""

    def load(task: str) -> ModuleType:
        name = f"recipe_{task}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                name, ROOT / "recipes" / task / "train.py"
            )
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return sys.modules[name]

    return load


RECIPES = ROOT / "recipes/asr/hparams"
SMALL = [
    "--prepare.num_train", "24", "--prepare.num_dev", "6", "--prepare.num_test", "6",
    "--training.epochs", "1", "--training.average_best", "1", "--data.max_batch_seconds", "12",
    "--model.encoder.layers.0.channels", "[4, 4]", "--model.encoder.layers.0.output_size", "16",
    "--model.encoder.layers.1.input_size", "16", "--model.encoder.layers.1.hidden_size", "8",
    "--device", "cpu",
]  # fmt: skip
KEYS = {"train": "--data.train", "dev": "--data.valid", "test": "--data.test.test"}
Row = dict[str, Any]


class Bench:
    """A user with the small corpus, who gives commands and reads what they say."""

    def __init__(self, folder: Path, corpus: Path, brain: Any, capsys: Any) -> None:
        self.folder = folder
        self.corpus = corpus
        self.brain = brain
        self.capsys = capsys
        self.out = folder / "out"

    def command(self, *arguments: str) -> list[str]:
        fixed = [str(RECIPES / "toy_ctc.yaml"), "--data_folder", str(self.corpus), *SMALL]
        return [*fixed, "--output_folder", str(self.out), *arguments]

    def works(self, *arguments: str) -> str:
        """Run the recipe to its end; give what it printed."""
        from speechkit.run import run

        run(self.brain, self.command(*arguments))
        return self.printed()

    def fails(self, *arguments: str, whole: list[str] | None = None, status: int = 1) -> str:
        """Run the recipe, which must stop with a message of its own."""
        from speechkit.run import run

        with pytest.raises(SystemExit) as stop:
            run(self.brain, self.command(*arguments) if whole is None else whole)
        shown = self.printed()
        assert stop.value.code == status, shown
        return shown

    def printed(self) -> str:
        shown = "".join(self.capsys.readouterr())
        assert "Traceback" not in shown
        return shown

    def rows(self, split: str) -> list[Row]:
        path = self.corpus / "manifests" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["audio"] = str(path.parent / row["audio"])
        return rows

    def manifest(self, split: str, change: Callable[[list[Row]], object]) -> list[str]:
        """Write a changed manifest; give the arguments that put it in the place of the split's."""
        rows = self.rows(split)
        change(rows)
        path = self.folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [KEYS[split], str(path)]

    def spoil(self, row: Row, kind: str) -> None:
        """Put a file that cannot be used in the place of a row's audio."""
        import soundfile

        bad = self.folder / f"{kind}.wav"
        good = soundfile.read(row["audio"], dtype="float32")[0]
        soundfile.write(bad, good if kind != "nan" else good * np.nan, 16000, subtype="FLOAT")
        if kind == "missing":
            bad.unlink()
        elif kind == "empty":
            bad.write_bytes(b"")
        elif kind == "truncated":
            bad.write_bytes(bad.read_bytes()[:9000])
        elif kind == "foreign":
            bad.write_text("these are not samples\n" * 1000)
        row["audio"] = str(bad)

    def tested(self) -> list[Row]:
        return [json.loads(row) for row in (self.out / "test/test/rows.jsonl").open()]

    def epochs(self) -> list[int]:
        return [json.loads(row)["epoch"] for row in (self.out / "metrics.jsonl").open()]

    def checkpoints(self) -> list[Row]:
        return json.loads((self.out / "checkpoints/index.json").read_text())["checkpoints"]


@pytest.fixture
def bench(
    tmp_path: Path,
    toy_corpus: Path,
    recipe: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    from speechkit.datasets.preparation import one_thread

    # Its figures take longer than all the rest.
    monkeypatch.setattr("speechkit.run.write_report", lambda folder: folder / "report.html")
    with one_thread():  # for models as small as these
        yield Bench(tmp_path, toy_corpus, recipe("asr").Recognition, capsys)


@pytest.fixture(scope="session")
def finished(
    toy_corpus: Path,
    recipe: Callable[[str], ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Give a run of two epochs, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("finished")
    from speechkit.run import run

    user = Bench(folder, toy_corpus, recipe("asr").Recognition, None)
    run(user.brain, user.command("--training.epochs", "2"))
    return user.out


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "model", tmp_path / "model")
