"""N-gram models against kenlm: our reader, our estimates read by it, and lmplz where it is."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from speechkit.decoding.ctc import PrefixBeamSearch
from speechkit.decoding.ngram_fusion import TokenNgramScorer
from speechkit.decoding.word_fusion import WordNgramScorer
from speechkit.lm.ngram import NgramModel

WORDS = [f"w{i}" for i in range(40)]


def sentences(count: int, seed: int) -> list[str]:
    """Make texts whose words follow Zipf's law and each other."""
    source = random.Random(seed)
    weights = [1.0 / (i + 1) for i in range(len(WORDS))]
    texts = []
    for _ in range(count):
        text, last = [], 0
        for _ in range(source.randint(0, 12)):
            last = (last + source.choices(range(len(WORDS)), weights)[0]) % len(WORDS)
            text.append(WORDS[last])
        texts.append(" ".join(text))
    return texts


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("speechkit.lm.kneser_ney").setLevel(logging.ERROR)


@pytest.mark.parametrize("order", [2, 3, 5])  # kenlm reads no unigram models
@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_kenlm_reads_and_scores_the_same(tmp_path: Path, order: int, name: str) -> None:
    pytest.importorskip("kenlm", reason="kenlm is not installed")
    path = tmp_path / name
    model = NgramModel.estimate(sentences(300, 0), order=order)
    model.save(path)
    theirs = NgramModel.load(path, backend="kenlm")
    texts = [*sentences(100, 1), "w1 unknown w2", ""]
    assert theirs.order == order
    assert model.score(texts) == pytest.approx(theirs.score(texts), abs=1e-4)
    assert model.perplexity(texts) == pytest.approx(theirs.perplexity(texts), rel=1e-5)
    for context in [(), ("<s>",), ("<s>", "w1"), ("w3", "w2", "w1"), ("unknown",)]:
        for word in ("w0", "w7", "unknown", "</s>"):
            mine = model.log_prob(context, word)
            assert mine == pytest.approx(theirs.log_prob(context, word), abs=1e-5)


def test_kenlm_in_the_search(tmp_path: Path) -> None:
    pytest.importorskip("kenlm", reason="kenlm is not installed")
    texts = ["ab ba a", "a ab", "ba b"]
    pieces = ["<blank>", " ", "a", "b"]
    NgramModel.estimate(texts, order=2).save(tmp_path / "lm.arpa")
    log_probs = torch.randn(1, 40, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    results = []
    for backend in ("speechkit", "kenlm"):
        model = NgramModel.load(tmp_path / "lm.arpa", backend=backend)
        words = None if backend == "speechkit" else ["ab", "ba", "a", "b"]
        scorer = WordNgramScorer(model=model, pieces=pieces, words=words)
        found = PrefixBeamSearch(beam_size=8, scorer=scorer)(log_probs, torch.tensor([40]))
        tokens = TokenNgramScorer(model=model, pieces=pieces)
        other = PrefixBeamSearch(beam_size=8, scorer=tokens)(log_probs, torch.tensor([40]))
        results.append((found[0][0], other[0][0]))
    for mine, theirs in zip(*results):
        assert mine.tokens == theirs.tokens
        assert mine.score == pytest.approx(theirs.score, abs=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_lmplz_estimates_the_same(tmp_path: Path, order: int) -> None:
    lmplz = shutil.which("lmplz")
    if lmplz is None:
        pytest.skip("kenlm's lmplz is not on the path")
    texts = sentences(2000, 2)
    (tmp_path / "text").write_text("\n".join(texts) + "\n")
    command = [lmplz, "-o", str(order), "-S", "100M", "-T", str(tmp_path), "--discount_fallback"]
    command += ["--text", str(tmp_path / "text"), "--arpa", str(tmp_path / "lm.arpa")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = NgramModel.load(tmp_path / "lm.arpa")
    ours = NgramModel.estimate(texts, order=order)
    assert ours.num_ngrams() == theirs.num_ngrams()
    check = [*sentences(200, 3), "unknown w1"]
    assert ours.score(check) == pytest.approx(theirs.score(check), abs=1e-3)
