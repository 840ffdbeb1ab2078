"""Count and test an n-gram language model: modified Kneser-Ney, in ARPA format.

    python recipes/lm/ngram.py recipes/lm/hparams/librispeech_text_ngram.yaml --text TEXT

The folder has what a trained model's has: hyperparameters, per-line rows, RESULTS.json; the model
is ``model.arpa.gz``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechkit.data.manifest import manifest_sha256
from speechkit.data.text import read_texts
from speechkit.files import atomic_write, explain
from speechkit.hparams import parse_command_line, read_hparams
from speechkit.lm.ngram import NgramModel, as_tokens
from speechkit.metrics.perplexity import summarize
from speechkit.metrics.results import Result
from speechkit.results import RunResults, write_test
from speechkit.run import USER_ERRORS, command_line
from speechkit.tracking import setup_logging

logger = logging.getLogger("speechkit.recipes.lm")  # below the one that is shown

KEYS = ("seed", "output_folder", "train", "test", "ngram")
OPTIONAL = ("prepare", "tokenizer")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; errors end with status 1, ``--debug`` shows where."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        count_and_test(arguments)
    except (*USER_ERRORS, OSError, ValueError) as error:
        if "--debug" in arguments:
            raise
        shown = explain(error) if isinstance(error, OSError) else error
        print(f"error: {shown}", file=sys.stderr)
        raise SystemExit(1) from None


def count_and_test(arguments: Sequence[str]) -> None:
    """Prepare, count, save, test, as the YAML says."""
    yaml, overrides, _ = parse_command_line(arguments, flags=("debug",))
    hparams = read_hparams(yaml, overrides, consumed=(*KEYS, *OPTIONAL), required=KEYS)
    folder = Path(str(hparams.value("output_folder")))
    setup_logging(folder, main=True)
    command = command_line(arguments)
    atomic_write(folder / "hparams.yaml", f"# command: {command}\n{hparams.text}")
    if "prepare" in hparams:
        hparams.build(["prepare"])["prepare"]()
    built = hparams.build([key for key in (*KEYS, "tokenizer") if key in hparams])
    words = _splitter(built.get("tokenizer"))
    model = built["ngram"]([words(text) for _, text in read_texts(built["train"])])
    model.save(folder / "model.arpa.gz")
    logger.info("%s n-grams of orders 1 to %d", model.num_ngrams(), model.order)
    results = {
        split: test(model, words, split, path, folder) for split, path in built["test"].items()
    }
    paths = {"train": built["train"], **built["test"]}
    record = RunResults(
        recipe=yaml.stem,
        command=command,
        seed=built["seed"],
        manifest_sha256={split: manifest_sha256(path) for split, path in paths.items()},
        results=results,
        device="cpu",
    )
    record.write(folder / "RESULTS.json")
    logger.info("results: %s  model: %s", folder / "RESULTS.json", folder / "model.arpa.gz")


def _splitter(tokenizer: Any) -> Callable[[str], Sequence[str]]:
    """Give what parts a text into the model's words: a tokenizer's labels, or words."""
    return str.split if tokenizer is None else lambda text: as_tokens(text, tokenizer)


def test(
    model: NgramModel, words: Callable[[str], Sequence[str]], split: str, path: str, folder: Path
) -> list[Result]:
    """Write the rows of a split, one a line, and give its results."""
    rows: list[dict[str, Any]] = []
    known, unknown = set(model.vocabulary), 0
    for name, text in read_texts(path):
        parted = words(text)
        unknown += sum(word not in known for word in parted)
        counts = {"num_tokens": len(parted), "num_words": len(text.split())}
        rows.append({"id": name, "text": text, "nll": -model.score([parted])[0], **counts})
    results = summarize(rows)
    write_test(folder, split, rows, "lm", results)
    if unknown:
        logger.warning("%s: %d words are unknown, and have the share of <unk>", split, unknown)
    logger.info("%s: %s", split, "  ".join(f"{r.metric} {r.value:.2f} {r.unit}" for r in results))
    return results


if __name__ == "__main__":
    main()
