"""Our attention contexts against SpeechBrain's, with the same random weights.

Compared are the alignments and the contexts of several steps, one query each, of padded memories:
SpeechBrain's modules keep the memory and the previous alignment in themselves. Theirs has a bias
for the frame and one for the query (and one for the location features), which only ever add up:
ours has one, their sum. Their kernel size counts the frames of one side. Gradients are compared
where the previous alignment carries none: SpeechBrain cuts it off there, the paper and we do not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkit.nn.contexts import AdditiveContext, LocationContext

MEMORY, QUERY, ATTENTION, VALUE = 7, 6, 10, 5
LENGTHS = torch.tensor([13, 8, 3])


def _copy_weights(ours: AdditiveContext, theirs: Any) -> None:
    bias = theirs.mlp_enc.bias + theirs.mlp_dec.bias
    if isinstance(ours, LocationContext):
        bias = bias + theirs.mlp_loc.bias
        ours.filters.weight.data.copy_(theirs.conv_loc.weight.data)
        ours.location.weight.data.copy_(theirs.mlp_loc.weight.data)
    ours.key.weight.data.copy_(theirs.mlp_enc.weight.data)
    ours.key.bias.data.copy_(bias.data)
    ours.query.weight.data.copy_(theirs.mlp_dec.weight.data)
    ours.energy.weight.data.copy_(theirs.mlp_attn.weight.data)
    assert ours.value is not None
    ours.value.load_state_dict(theirs.mlp_out.state_dict())


def _assert_steps_equal(ours: AdditiveContext, theirs: Any, steps: int) -> None:
    memory = torch.randn(3, 13, MEMORY)
    fixed = ours.fix(memory, LENGTHS)
    state = ours.start(fixed)
    for _ in range(steps):
        query = torch.randn(3, 1, QUERY)
        got = ours(query, fixed, state)
        state = got.state
        context, weights = theirs(memory, LENGTHS, query[:, 0])
        torch.testing.assert_close(got.weights[:, 0], weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.context[:, 0], context, atol=1e-5, rtol=1e-4)


def _assert_gradients_equal(ours: AdditiveContext, theirs: Any) -> None:
    memory = torch.randn(3, 13, MEMORY, requires_grad=True)
    query = torch.randn(3, 1, QUERY, requires_grad=True)
    fixed = ours.fix(memory, LENGTHS)
    theirs.reset()
    pair = (
        ours(query, fixed, ours.start(fixed)).context[:, 0],
        theirs(memory, LENGTHS, query[:, 0])[0],
    )
    got, want = (torch.autograd.grad(y.square().sum(), (memory, query)) for y in pair)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_additive_context_equals_content_based_attention() -> None:
    peer = pytest.importorskip("speechbrain.nnet.attention", reason="needs the extra [parity]")
    theirs = peer.ContentBasedAttention(MEMORY, QUERY, ATTENTION, VALUE)
    ours = AdditiveContext(
        memory_size=MEMORY, query_size=QUERY, attention_size=ATTENTION, value_size=VALUE
    )
    _copy_weights(ours, theirs)
    _assert_steps_equal(ours, theirs, 3)
    _assert_gradients_equal(ours, theirs)


@pytest.mark.parametrize("sharpening", [1.0, 2.5])
def test_location_context_equals_location_aware_attention(sharpening: float) -> None:
    peer = pytest.importorskip("speechbrain.nnet.attention", reason="needs the extra [parity]")
    theirs = peer.LocationAwareAttention(MEMORY, QUERY, ATTENTION, VALUE, 4, 3, sharpening)
    ours = LocationContext(
        memory_size=MEMORY,
        query_size=QUERY,
        attention_size=ATTENTION,
        value_size=VALUE,
        channels=4,
        kernel_size=7,
        sharpening=sharpening,
    )
    _copy_weights(ours, theirs)
    with torch.no_grad():  # filters strong enough to matter
        for weight in (ours.location.weight, theirs.mlp_loc.weight):
            weight.mul_(10)
    _assert_steps_equal(ours, theirs, 4)
    _assert_gradients_equal(ours, theirs)
