"""Our audio spectrogram transformer against that of transformers, with the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.ast import AudioSpectrogramTransformer, TokenPooling

MELS, FRAMES, SIZE = 32, 96, 24
# Ours, and what transformers 5 and 4 call it within a layer.
NAMES = {
    "query": ("attention.q_proj", "attention.attention.query"),
    "key": ("attention.k_proj", "attention.attention.key"),
    "value": ("attention.v_proj", "attention.attention.value"),
    "attention.out_proj": ("attention.o_proj", "attention.output.dense"),
    "feedforward.expand": ("mlp.fc1", "intermediate.dense"),
    "feedforward.reduce": ("mlp.fc2", "output.dense"),
    "attention_norm": ("layernorm_before", "layernorm_before"),
    "feedforward_norm": ("layernorm_after", "layernorm_after"),
}


def _theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_length=FRAMES, num_mel_bins=MELS, num_labels=5, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.ASTForAudioClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class _Ours(nn.Module):
    """Encoder, pooling and head, as `SoundClassifier` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AudioSpectrogramTransformer(
            input_size=MELS, max_frames=FRAMES, embed_dim=SIZE, num_heads=3, num_layers=2,
            feedforward_size=40,
        )  # fmt: skip
        self.pooling = TokenPooling(input_size=SIZE)
        self.head = nn.Linear(SIZE, 5)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        return self.head(self.pooling(*self.encoder(x, lengths)))


def _first(layer: dict[str, Tensor], names: tuple[str, ...], part: str) -> Tensor:
    return next(layer[f"{name}.{part}"] for name in names if f"{name}.{part}" in layer)


def _copy(theirs: Any, ours: _Ours) -> None:
    """Give ours the weights of theirs, whose patches are ordered by frequency first."""
    encoder, source = ours.encoder, theirs.audio_spectrogram_transformer
    embeddings = source.embeddings
    weights = embeddings.patch_embeddings.projection
    steps, rows = encoder.positions.shape[:2]
    positions = embeddings.position_embeddings[0]
    state = {
        "encoder.patches.weight": weights.weight.transpose(2, 3),  # (D, 1, time, frequency)
        "encoder.patches.bias": weights.bias,
        "encoder.tokens": torch.cat([embeddings.cls_token[0], embeddings.distillation_token[0]]),
        "encoder.token_positions": positions[:2],
        "encoder.positions": positions[2:].unflatten(0, (rows, steps)).transpose(0, 1),
        **{f"encoder.norm.{n}": p for n, p in source.layernorm.named_parameters()},
        **{f"pooling.norm.{n}": p for n, p in theirs.classifier.layernorm.named_parameters()},
        **{f"head.{n}": p for n, p in theirs.classifier.dense.named_parameters()},
    }
    found = dict(source.named_parameters())
    for index in range(2):
        begin = f".{index}."
        layer = {n.partition(begin)[2]: p for n, p in found.items() if begin in n}
        for part in ("weight", "bias"):
            parts = {ours: _first(layer, names, part) for ours, names in NAMES.items()}
            qkv = [parts.pop(name) for name in ("query", "key", "value")]
            parts["attention.in_proj"] = torch.cat(qkv)
            target = f"encoder.layers.{index}"
            state.update({f"{target}.{name}.{part}": value for name, value in parts.items()})
    assert state.keys() == ours.state_dict().keys()
    ours.load_state_dict(state)


def test_logits_and_gradients() -> None:
    theirs, ours = _theirs(), _Ours()
    _copy(theirs, ours)
    x = torch.randn(2, FRAMES, MELS, requires_grad=True)
    got, want = ours(x), theirs(x).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


def test_the_size_of_the_base_model_is_theirs() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(num_labels=527))
        mine = [AudioSpectrogramTransformer(), TokenPooling(input_size=768), nn.Linear(768, 527)]
    count = sum(p.numel() for module in mine for p in module.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
