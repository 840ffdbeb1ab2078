"""Make the embedded corpus of synthetic speech: ``python tools/make_toy_corpus.py data/toy``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from speechkit.datasets import toy


def main() -> None:
    """Make the corpus, and its manifests where a folder for them is named."""
    parser = argparse.ArgumentParser(
        description="Synthetic spoken commands in the layout of LibriSpeech, by espeak-ng."
    )
    parser.add_argument("root", type=Path, help="the corpus folder to make")
    parser.add_argument("--manifests", type=Path, help="also write train, dev and test .jsonl here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_train", type=int, default=1500, help="training utterances")
    parser.add_argument("--num_dev", type=int, default=100, help="development utterances")
    parser.add_argument("--num_test", type=int, default=150, help="test utterances")
    options = vars(parser.parse_args())
    root, manifests = options.pop("root"), options.pop("manifests")
    begin = time.perf_counter()
    if manifests is None:
        toy.make_toy_corpus(root, **options)
    else:
        toy.prepare(root, manifests, **options)
    print(f"{root}: ready after {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
