"""Beam search against pyctcdecode and SpeechBrain's CTCBeamSearcher: the same n-best scores.

Compared without a language model, with the same ``token_min_logp=-5`` and ``beam_prune_logp=-10``,
with ``prune_history`` off (it drops hypotheses that a language model could not tell apart) and with
``beam_unit="ending"``, since both peers count a prefix that ends in a blank and the same prefix
that ends in its last label as two members of the beam. The labels are single letters without a
space: the peers merge on the text, in which runs of spaces become one.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from speechkit.decoding.ctc import PrefixBeamSearch


def posteriors(kind: str, vocab: int, num_frames: int = 80) -> Tensor:
    """Make log-probabilities (T, V) in float64, so that no tie depends on rounding."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(num_frames, vocab, generator=generator, dtype=torch.float64)
    if kind == "peaked":
        path = torch.zeros(num_frames, dtype=torch.long)
        spoken = torch.randint(1, vocab, (num_frames // 5,), generator=generator)
        path[torch.arange(0, num_frames, 5)] = spoken
        logits[torch.arange(num_frames), path] += 7.0 if vocab < 100 else 9.0
    else:
        logits *= 2.0
    return logits.log_softmax(-1)


def symbols(vocab: int) -> list[str]:
    return ["", *(chr(0x4E00 + i) for i in range(vocab - 1))]


def ours(log_probs: Tensor, beam_size: int) -> list[tuple[str, float]]:
    search = PrefixBeamSearch(beam_size=beam_size, nbest=beam_size, beam_unit="ending")
    names = symbols(log_probs.shape[1])
    found = search(log_probs[None], torch.tensor([len(log_probs)]))[0]
    return [("".join(names[token] for token in h.tokens), h.score) for h in found]


def assert_same(mine: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> None:
    assert [text for text, _ in mine] == [text for text, _ in theirs]
    assert [s for _, s in mine] == pytest.approx([s for _, s in theirs], abs=1e-5)


cases = pytest.mark.parametrize(
    ("kind", "vocab", "beam_size"),
    [
        ("peaked", 30, 10),
        ("peaked", 30, 100),
        ("peaked", 500, 10),
        ("peaked", 500, 100),
        ("flat", 30, 10),
        ("flat", 30, 100),
        ("flat", 500, 10),
    ],
)


@cases
def test_pyctcdecode(kind: str, vocab: int, beam_size: int) -> None:
    pyctcdecode = pytest.importorskip("pyctcdecode")
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    log_probs = posteriors(kind, vocab)
    decoder = pyctcdecode.build_ctcdecoder(symbols(vocab))
    beams = decoder.decode_beams(log_probs.numpy(), beam_width=beam_size, prune_history=False)
    assert_same(ours(log_probs, beam_size), [(beam[0], beam[-2]) for beam in beams])


@cases
def test_speechbrain(kind: str, vocab: int, beam_size: int) -> None:
    decoders = pytest.importorskip("speechbrain.decoders.ctc")
    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    log_probs = posteriors(kind, vocab)
    searcher = decoders.CTCBeamSearcher(
        blank_index=0,
        vocab_list=symbols(vocab),
        beam_size=beam_size,
        topk=beam_size,
        prune_history=False,
    )
    beams = searcher(log_probs[None], torch.tensor([1.0]))[0]
    assert_same(ours(log_probs, beam_size), [(beam.text, float(beam.score)) for beam in beams])
