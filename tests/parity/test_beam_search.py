"""Joint search against SpeechBrain: CTC prefix scores, and the searches' n-best.

The peer wants different numbers for blank, begin and end, so it gets two more columns, of no
probability in the CTC posteriors. Its search is compared with our scores put together by it: the
same toy decoder in its ``forward_step``, CTC as a full scorer, no length normalization, no end
threshold, and posteriors for which every hypothesis ends before the maximum length (the peer
returns those that do not without the probability of an end, and stops once ``beam_size`` have ended
whatever may follow).
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.decoding.beam_search import BeamSearch
from speechkit.decoding.ctc_prefix import CTCPrefixScorer
from speechkit.decoding.step_scorer import SearchBatch
from speechkit.nn.stepping import Start, StepOutput

ABSENT = -1e4


def posteriors(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).log_softmax(-1)


def with_bounds(log_probs: Tensor) -> Tensor:
    """Append columns for begin and end."""
    return torch.cat([log_probs, log_probs.new_full((*log_probs.shape[:-1], 2), ABSENT)], -1)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("partial", [False, True])
def test_prefix_scores(scale: float, partial: bool) -> None:
    peer = pytest.importorskip("speechbrain.decoders.ctc")
    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    batch, beams, frames, vocab, steps = 2, 3, 25, 8, 6
    lengths = torch.tensor([25, 19])
    log_probs = posteriors(int(scale * 2), batch, frames, vocab, scale=scale)
    theirs = peer.CTCPrefixScore(with_bounds(log_probs), lengths, 0, vocab + 1)
    scorer = CTCPrefixScorer()
    fixed, state = scorer.start(SearchBatch(torch.zeros(batch, frames, 1), lengths, log_probs))
    tokens = torch.zeros(batch, 1, dtype=torch.int64)
    their_tokens, memory = torch.full((batch * beams,), vocab), None
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        candidates = torch.tensor([0, 1, 2, 3, 4]).expand(*tokens.shape, 5) if partial else None
        labels = 5 if partial else vocab
        mine = scorer.score(fixed, state, tokens, candidates, None).log_probs
        some = torch.arange(1, 5).expand(batch * beams, 4) if partial else None
        scores, memory = theirs.forward_step(their_tokens, memory, some)
        scores = scores.view(batch, beams, -1)
        expected = torch.cat([scores[..., vocab + 1 :], scores[..., 1:labels]], -1)
        torch.testing.assert_close(
            mine.expand(batch, beams, labels).float(), expected, atol=3e-4, rtol=1e-5
        )
        parents = torch.randint(tokens.shape[1], (batch, beams), generator=generator)
        tokens = torch.randint(1, labels, (batch, beams), generator=generator)
        state = scorer.select(fixed, state, parents, tokens)
        memory = theirs.permute_mem(memory, parents * (vocab + 2) + tokens)
        their_tokens = tokens.flatten()


class Table:
    """A decoder whose next label depends on the last label and on the memory's mean."""

    memory_size = 4

    def __init__(self, seed: int, vocab_size: int, end: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self.table = torch.randn(vocab_size, vocab_size, generator=generator) * 2.0
        self.look = torch.randn(4, vocab_size, generator=generator)
        self.end = end

    def start(self, memory: Tensor, lengths: Tensor) -> Start:
        steps = torch.zeros(len(memory), 1)
        return Start(torch.stack([m[:n].mean(0) for m, n in zip(memory, lengths)]), steps)

    def step(self, tokens: Tensor, fixed: Tensor, state: Tensor) -> StepOutput:
        logits = self.table[tokens] + (fixed @ self.look).unsqueeze(1)
        logits = logits.clone()
        logits[..., 0] += self.end * (state - 3.0)  # ends become likely with time
        return StepOutput(logits.log_softmax(-1), state + 1.0)


def searcher(decoder: Table, ctc: Tensor, weight: float, beam_size: int) -> Any:
    seq2seq = pytest.importorskip("speechbrain.decoders.seq2seq")
    scorers = pytest.importorskip("speechbrain.decoders.scorer")
    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    vocab = decoder.vocab_size

    class Search(seq2seq.S2SBeamSearcher):  # type: ignore[name-defined, misc]
        def reset_mem(self, batch_size: int, device: Any) -> None:
            return None

        def permute_mem(self, memory: Any, index: Tensor) -> Any:
            return memory[0], memory[1].flatten(0, 1)[index].view_as(memory[1])

        def set_n_out(self) -> int:
            return vocab + 2

        def forward_step(self, tokens: Tensor, memory: Any, states: Tensor, lengths: Tensor) -> Any:
            if memory is None:
                firsts = slice(None, None, beam_size)
                fixed, state = decoder.start(states[firsts], lengths[firsts])
                memory = fixed, state.expand(-1, beam_size)
            inputs = torch.where(tokens >= vocab, 0, tokens).view(-1, beam_size)
            out = decoder.step(inputs, *memory)
            log_probs = out.log_probs.flatten(0, 1)
            bounds = torch.stack([torch.full_like(log_probs[:, 0], ABSENT), log_probs[:, 0]], -1)
            log_probs = torch.cat([log_probs, bounds], -1)
            log_probs[:, 0] = ABSENT
            return log_probs, (memory[0], out.state), None

    scorer = None
    if weight:
        ctc_scorer = scorers.CTCScorer(torch.nn.Identity(), blank_index=0, eos_index=vocab + 1)

        def reset(states: Tensor, lengths: Tensor) -> None:
            peer = pytest.importorskip("speechbrain.decoders.ctc")
            ctc_scorer.ctc_score = peer.CTCPrefixScore(with_bounds(ctc), lengths, 0, vocab + 1)

        ctc_scorer.reset_mem = reset
        scorer = scorers.ScorerBuilder(full_scorers=[ctc_scorer], weights={"ctc": weight})
    return Search(
        bos_index=vocab, eos_index=vocab + 1, min_decode_ratio=0.0, max_decode_ratio=1.0,
        beam_size=beam_size, scorer=scorer, return_topk=True, topk=beam_size,
        using_eos_threshold=False, length_normalization=False,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_search(seed: int, weight: float, beam_size: int) -> None:
    vocab, frames = 9, 30
    generator = torch.Generator().manual_seed(seed)
    memory, lengths = torch.randn(2, frames, 4, generator=generator), torch.tensor([30, 21])
    ctc = posteriors(seed, 2, frames, vocab)
    decoder = Table(seed, vocab, end=2.0)
    peer = searcher(decoder, ctc, weight, beam_size)
    with torch.no_grad():
        hyps, _, scores, _ = peer(memory, lengths / frames)
    search = BeamSearch(beam_size=beam_size, nbest=beam_size, ctc_weight=weight)
    for item, found in enumerate(search(decoder, memory, lengths, ctc)):
        theirs = []
        for row, score in zip(hyps[item].tolist(), scores[item].tolist()):
            theirs.append((row[: row.index(vocab + 1)], score))
        # Theirs are the first to end: ours are these, or better ones that end later.
        assert found[0].score >= theirs[0][1] - 1e-4
        mine = {tuple(one.tokens): one.score for one in found}
        common = [(tuple(t), s) for t, s in theirs if tuple(t) in mine]
        assert common
        assert [mine[t] for t, _ in common] == pytest.approx([s for _, s in common], abs=1e-4)
        if found[0].tokens == theirs[0][0] or beam_size == 1:
            assert found[0].tokens == theirs[0][0]
