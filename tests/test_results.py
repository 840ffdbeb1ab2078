"""Results files: written, read, computed again; and the tables that are made from them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from speechkit.data.manifest import DataError
from speechkit.metrics.results import SCORERS, Result
from speechkit.results import (
    RunResults,
    describe_device,
    disagreements,
    environment,
    git_commit,
    read_rows,
    score_folder,
    write_rows,
    write_test,
)

ROOT = Path(__file__).parents[1]
ROWS = [
    {"id": "a", "reference": "turn the light on", "hypothesis": "turn a light on"},
    {"id": "b", "reference": "stop", "hypothesis": "stop\u2028now"},
]


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def make_run(folder: Path, splits: tuple[str, ...] = ("test-a", "test-b")) -> Path:
    results = {}
    for split in splits:
        results[split] = SCORERS["asr"](ROWS)
        write_test(folder, split, ROWS, "asr", results[split])
    RunResults("toy_ctc", "python train.py", 1, results).write(folder / "RESULTS.json")
    return folder


def make_results(wer: float, seed: int, recipe: str = "toy_ctc", count: int = 400) -> RunResults:
    numbers = [Result("WER", wer, "%", count), Result("deletions", 3.0, "words", count)]
    return RunResults(recipe, "python train.py", seed, {"test": numbers})


# ---------------------------------------------------------------- RESULTS.json


def test_results_have_the_promised_fields(tmp_path: Path) -> None:
    run = RunResults(
        "toy_ctc", "python x", 3, {"test": [Result("WER", 2.5, "%", 400)]}, {"test": "ab"}
    )
    run.write(tmp_path / "RESULTS.json")
    content = json.loads((tmp_path / "RESULTS.json").read_text())
    assert list(content) == [
        "recipe", "command", "seed", "commit", "device", "manifest_sha256", "versions", "results",
    ]  # fmt: skip
    assert content["results"] == [
        {"split": "test", "metric": "WER", "value": 2.5, "unit": "%", "count": 400}
    ]
    assert content["versions"]["torch"] == str(torch.__version__)
    assert RunResults.read(tmp_path / "RESULTS.json") == run


def test_reading_broken_results_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.json"
    with pytest.raises(DataError, match="no such file"):
        RunResults.read(path)
    path.write_text('{"recipe": "x"')
    with pytest.raises(DataError, match="not JSON"):
        RunResults.read(path)
    path.write_text('{"recipe": "x", "seed": 1}')
    with pytest.raises(DataError, match="lacks command, results"):
        RunResults.read(path)
    content = make_results(1.0, 1).to_dict()
    del content["results"][1]["unit"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"results\[1\].*missing: unit"):
        RunResults.read(path)


def test_rows_survive_any_text(tmp_path: Path) -> None:
    rows = [{"id": "x", "reference": 'a "b"\n\u2028c é', "score": -1.5}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n{"id":')
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_rows(tmp_path / "rows.jsonl")


# ---------------------------------------------------------------- score


def test_score_computes_every_number_again(tmp_path: Path) -> None:
    scored = score_folder(make_run(tmp_path))
    assert [split for split, _ in scored[::6]] == ["test-a", "test-b"]
    assert scored[0][1] == Result("WER", 40.0, "%", 5)


@pytest.mark.parametrize("name", ["RESULTS.json", "test/test-b/summary.json"])
def test_a_number_that_the_rows_do_not_give_is_found(tmp_path: Path, name: str) -> None:
    make_run(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace("40.0", "39.0"))
    with pytest.raises(DataError, match=r"test-b WER is 39 % of 5, the rows give 40 % of 5"):
        score_folder(tmp_path)
    assert disagreements(tmp_path, score_folder(tmp_path, check=False))


def test_a_missing_split_and_a_missing_row_are_found(tmp_path: Path) -> None:
    make_run(tmp_path)
    rows = tmp_path / "test" / "test-a" / "rows.jsonl"
    rows.write_text(rows.read_text().split("\n")[0] + "\n")
    with pytest.raises(DataError, match="test-a WER"):
        score_folder(tmp_path)
    make_run(tmp_path)
    for path in (tmp_path / "test" / "test-b").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="test-b WER is 40 % of 5, the rows give missing"):
        score_folder(tmp_path)


def test_a_folder_that_was_not_tested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test/<split>/rows\.jsonl"):
        score_folder(tmp_path)
    write_test(tmp_path, "x", ROWS, "nonsense", [])
    with pytest.raises(DataError, match="no scorer 'nonsense'; there are: asr"):
        score_folder(tmp_path)
    write_test(tmp_path, "x", ROWS, "", [])
    assert score_folder(tmp_path) == []


# ---------------------------------------------------------------- environment


def test_the_commit_is_that_of_the_tree(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert git_commit(tmp_path) == head.stdout.strip()
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == head.stdout.strip() + "-dirty"


def test_devices_are_named() -> None:
    assert describe_device("cpu").startswith("cpu (")
    assert describe_device(describe_device("cpu")) == describe_device("cpu")
    assert describe_device(torch.device("meta")) == "meta"
    assert set(environment()) == {"commit", "versions", "system"}


# ---------------------------------------------------------------- tools/results.py


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a project with one task and a README with an empty table."""
    task = tmp_path / "recipes" / "asr"
    (task / "results").mkdir(parents=True)
    (task / "README.md").write_text(
        "# ASR\n\n<!-- results:begin toy_ctc -->\n<!-- results:end -->\n\nAfter.\n"
    )
    return tmp_path


def put(tree: Path, name: str, run: RunResults) -> None:
    run.write(tree / "recipes" / "asr" / "results" / f"{name}.json")


def run_tool(tree: Path, *options: str) -> int:
    return int(tool.main(["--root", str(tree), *options]))


def readme(tree: Path) -> str:
    return (tree / "recipes" / "asr" / "README.md").read_text()


def test_the_table_is_made_and_then_agrees(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, wer in ((1, 2.0), (2, 3.0), (10, 4.0)):
        put(tree, f"toy_ctc-{seed}", make_results(wer, seed))
    assert run_tool(tree, "--check") == 1
    assert "+| toy_ctc | test | WER |" in capsys.readouterr().err
    assert "WER" not in readme(tree)
    assert run_tool(tree) == 0
    assert "| toy_ctc | test | WER | 3.00 ± 1.00 % | 1, 2, 10 | 400 |" in readme(tree)
    assert "deletions" not in readme(tree)
    assert readme(tree).startswith("# ASR\n")
    assert readme(tree).endswith("<!-- results:end -->\n\nAfter.\n")
    assert run_tool(tree, "--check") == 0
    before = readme(tree)
    assert run_tool(tree) == 0
    assert readme(tree) == before


def test_a_changed_result_disagrees(tree: Path) -> None:
    put(tree, "toy_ctc-1", make_results(2.0, 1))
    run_tool(tree)
    put(tree, "toy_ctc-1", make_results(2.1, 1))
    assert run_tool(tree, "--check") == 1


def test_variants_have_rows_of_their_own_and_a_mean(tree: Path) -> None:
    for variant, values in (("jackson", (2.0, 4.0)), ("theo", (5.0,))):
        for seed, wer in enumerate(values, start=1):
            put(tree, f"toy_ctc-{variant}-{seed}", make_results(wer, seed, count=100))
    assert run_tool(tree) == 0
    assert "| toy_ctc (jackson) | test | WER | 3.00 ± 1.41 % | 1, 2 | 100 |" in readme(tree)
    assert "| toy_ctc (theo) | test | WER | 5.00 % | 1 | 100 |" in readme(tree)
    assert "| toy_ctc (mean of 2) | test | WER | 4.00 ± 1.41 % | 3 runs | 200 |" in readme(tree)


def test_a_marker_chooses_metrics_and_yamls(tree: Path) -> None:
    path = tree / "recipes" / "asr" / "README.md"
    path.write_text(
        "<!-- results:begin toy_ctc big metrics=deletions -->\nold\n<!-- results:end -->"
    )
    put(tree, "toy_ctc-1", make_results(2.0, 1))
    put(tree, "big-1", make_results(1.0, 1, "big"))
    assert run_tool(tree) == 0
    assert "| big | test | deletions | 3.00 words | 1 | 400 |" in readme(tree)
    assert "WER" not in readme(tree)
    assert "old" not in readme(tree)


def test_splits_and_searches_side_by_side(tree: Path) -> None:
    path = tree / "recipes" / "asr" / "README.md"
    path.write_text(
        "<!-- results:begin toy_ctc:theo big metrics=WER layout=wide -->\n<!-- results:end -->"
    )
    for variant, wer in (("jackson", 9.0), ("theo", 2.0)):
        put(tree, f"toy_ctc-{variant}-1", make_results(wer, 1))
    big = make_results(1.0, 1, "big")
    for split, wer in (("test@greedy", 1.0), ("test@beam", 0.5), ("far@greedy", 4.0)):
        big.results[split] = make_results(wer, 1).results["test"]
    del big.results["test"]
    put(tree, "big-1", big)
    assert run_tool(tree) == 0
    table = [line for line in readme(tree).splitlines() if line.startswith("|")]
    assert table == [
        "| model | search | WER, test | WER, far | seeds |",
        "|---|---|---:|---:|---|",
        "| big | greedy | 1.00 % | 4.00 % | 1 |",
        "| big | beam | 0.50 % |  | 1 |",
        "| toy_ctc (theo) |  | 2.00 % |  | 1 |",
    ]


def test_metrics_side_by_side(tree: Path) -> None:
    path = tree / "recipes" / "asr" / "README.md"
    path.write_text(
        "<!-- results:begin toy_ctc metrics=WER,word_share layout=metrics -->\n<!-- results:end -->"
    )
    for seed, share in ((1, 0.25), (2, 0.75)):
        results = make_results(2.0, seed)
        results.results["far"] = [Result("word share", share, "", 4)]
        put(tree, f"toy_ctc-{seed}", results)
    assert run_tool(tree) == 0
    table = [line for line in readme(tree).splitlines() if line.startswith("|")]
    assert table == [
        "| split | WER, % | word share | seeds |",
        "|---|---:|---:|---|",
        "| test | 2.00 ± 0.00 |  | 1, 2 |",
        "| far |  | 0.50 ± 0.35 | 1, 2 |",
    ]


def test_no_results_yet(tree: Path) -> None:
    assert run_tool(tree) == 0
    assert tool.EMPTY in readme(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:begin toy_ctc -->\n", "line 1 has no <!-- results:end -->"),
        ("x\n<!-- results:end -->\n", "line 2: results:end without"),
        ("<!-- results:begin metrics=WER -->\n<!-- results:end -->", "names no YAML"),
        ("<!-- results:begin a colour=red -->\n<!-- results:end -->", "unknown option"),
        ("<!-- results:begin a layout=wide -->\n<!-- results:end -->", "needs one metric"),
        ("<!-- results:begin a layout=metrics -->\n<!-- results:end -->", "needs metrics"),
        ("<!-- results:begin a layout=round -->\n<!-- results:end -->", "there are wide, metrics"),
    ],
)
def test_faulty_markers_are_named(
    tree: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tree / "recipes" / "asr" / "README.md").write_text(text)
    assert run_tool(tree) == 1
    assert message in capsys.readouterr().err
    assert readme(tree) == text


def test_results_that_no_table_shows_and_wrong_names(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tree, "other-1", make_results(2.0, 1, "other"))
    assert run_tool(tree, "--check") == 1
    assert "no table shows other" in capsys.readouterr().err
    put(tree, "toy_ctc-7", make_results(2.0, 1))
    assert run_tool(tree, "--check") == 1
    assert "its name says toy_ctc with seed 7" in capsys.readouterr().err
    (tree / "recipes" / "asr" / "results" / "toy_ctc-7.json").rename(
        tree / "recipes" / "asr" / "results" / "toy.json"
    )
    assert run_tool(tree, "--check") == 1
    assert "name it <yaml>[-<variant>]-<seed>.json" in capsys.readouterr().err


def test_the_tables_of_this_project_agree_with_their_files() -> None:
    assert tool.update(ROOT, check=True) == []
