"""Our dual-path networks against SpeechBrain's and asteroid's, with the same random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.convert.sepformer import convert_masknet, convert_sepformer, load_sepformer
from speechkit.data.errors import DataError
from speechkit.nn.dual_path_light import LightSepFormerMasker
from speechkit.nn.dual_path_models import DualPathRNNMasker, SepFormerMasker

SIZE, HEADS, CHUNK, SOURCES = 16, 2, 8, 3
FRAMES = (37, 8, 3, 1)
"""One that fills no chunk, one that fills one, one below half a chunk, one frame."""


def _randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _dual_path(**options: Any) -> tuple[Any, Any]:
    peer = pytest.importorskip("speechbrain.lobes.models.dual_path")
    block = {
        "d_model": SIZE,
        "nhead": HEADS,
        "d_ffn": 24,
        "dropout": 0.0,
        "use_positional_encoding": True,
        "norm_before": True,
        **options.pop("block", {}),
    }
    settings = {
        "num_layers": 2,
        "K": CHUNK,
        "num_spks": SOURCES,
        "skip_around_intra": True,
        "linear_layer_after_inter_intra": False,
        **options,
    }
    theirs = peer.Dual_Path_Model(
        SIZE,
        SIZE,
        peer.SBTransformerBlock(num_layers=3, **block),
        peer.SBTransformerBlock(num_layers=1, **block),
        **settings,
    )
    _randomise(theirs)
    return peer, theirs


def _assert_masks_close(ours: nn.Module, masks_of: Any) -> None:
    """Compare masks for each length, and the gradients of the input for the first."""
    for frames in FRAMES:
        x = torch.randn(1, frames, ours.num_features).requires_grad_()
        got, want = ours(x, torch.tensor([frames])), masks_of(x.transpose(1, 2))
        assert want.abs().max() > 1e-2
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        if frames == FRAMES[0]:
            grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
            torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)


def _speechbrain_masks(theirs: nn.Module) -> Any:
    return lambda x: theirs(x).permute(1, 0, 3, 2)  # (S, B, N, T) -> (B, S, T, N)


@pytest.mark.parametrize(
    ("theirs_options", "ours_options"),
    [
        ({}, {}),
        ({"norm": "gln"}, {}),
        ({"norm": "cln"}, {"norm": "frame"}),
        ({"skip_around_intra": False}, {"skip_intra": False}),
        ({"linear_layer_after_inter_intra": True}, {"linear": True}),
        (
            {"use_global_pos_enc": True, "max_length": SIZE},
            {"global_positions": True},
        ),
        (
            {"block": {"norm_before": False, "activation": "gelu"}},
            {"pre_norm": False, "activation": "gelu"},
        ),
        ({"block": {"use_positional_encoding": False}}, {"positions": False}),
    ],
    ids=["published", "gln", "cln", "no_skip", "linear", "global_positions", "post_norm", "no_pos"],
)
def test_sepformer_equals_speechbrain(
    theirs_options: dict[str, Any], ours_options: dict[str, Any]
) -> None:
    _, theirs = _dual_path(**theirs_options)
    ours = SepFormerMasker(
        num_features=SIZE,
        num_sources=SOURCES,
        bottleneck_size=SIZE,
        chunk_size=CHUNK,
        intra_layers=3,
        inter_layers=1,
        num_heads=HEADS,
        feedforward_size=24,
        **ours_options,
    )
    ours.load_state_dict(convert_masknet(theirs.state_dict()))
    _assert_masks_close(ours, _speechbrain_masks(theirs))


def _checkpoints(masknet: nn.Module) -> tuple[dict[str, Tensor], ...]:
    return (
        {"conv1d.weight": torch.randn(SIZE, 1, 6)},
        masknet.state_dict(),
        {"weight": torch.randn(SIZE, 1, 6)},
    )


def test_published_files_open_as_a_separator(tmp_path: Path) -> None:
    """encoder, masknet and decoder of SpeechBrain give the waveforms that its own parts give."""
    peer, masknet = _dual_path()
    parts = _checkpoints(masknet)
    for name, part in zip(("encoder", "masknet", "decoder"), parts):
        torch.save(part, tmp_path / f"{name}.ckpt")
    ours = load_sepformer(tmp_path, sample_rate=16000, chunk_size=CHUNK, num_heads=HEADS)
    assert ours.sample_rate == 16000
    encoder = peer.Encoder(kernel_size=6, out_channels=SIZE)
    encoder.load_state_dict(parts[0])
    decoder = peer.Decoder(SIZE, 1, kernel_size=6, stride=3, bias=False)
    decoder.load_state_dict(parts[2])
    x = torch.randn(1, 6 + 3 * 50)
    frames = encoder(x)
    want = torch.stack([decoder(frames * mask) for mask in masknet(frames)], dim=1)
    got = ours(x, torch.tensor([x.shape[1]])).estimates
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def _without(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != name}


def test_conversion_says_what_does_not_fit(tmp_path: Path) -> None:
    _, masknet = _dual_path()
    encoder, weights, decoder = _checkpoints(masknet)
    with pytest.raises(DataError, match=r"masknet.ckpt has no weight 'conv2d.bias'"):
        convert_sepformer(encoder, _without(weights, "conv2d.bias"), decoder)
    foreign = {**weights, "dual_mdl.0.intra_mdl.mdl.rnn.weight_ih_l0": torch.zeros(1)}
    with pytest.raises(DataError, match=r"does not have: 'dual_mdl.0.intra_mdl.mdl.rnn"):
        convert_sepformer(encoder, foreign, decoder)
    with pytest.raises(DataError, match=r"shape \(16, 1, 6\) and decoder.ckpt of \(4, 1, 6\)"):
        convert_sepformer(encoder, weights, {"weight": torch.zeros(4, 1, 6)})
    with pytest.raises(DataError, match=r"decoder.ckpt has weights .* \['bias'\]"):
        convert_sepformer(encoder, weights, {**decoder, "bias": torch.zeros(1)})
    with pytest.raises(DataError, match=r"encoder.ckpt is missing"):
        load_sepformer(tmp_path)


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        raise_it: Any = pytest.fail
        return raise_it, ("a pickle was run",)


def test_a_pickle_that_is_code_is_refused(tmp_path: Path) -> None:
    for name in ("encoder", "masknet", "decoder"):
        torch.save({"conv1d.weight": _Malicious()}, tmp_path / f"{name}.ckpt")
    with pytest.raises(DataError, match=r"encoder.ckpt is not a file of tensors alone"):
        load_sepformer(tmp_path)


def _copy_lstm(ours: nn.ModuleList, theirs: nn.LSTM) -> None:
    for number, layer in enumerate(ours):
        layer.load_state_dict({
            name: getattr(theirs, name.replace("_l0", f"_l{number}")).detach()
            for name in layer.state_dict()
        })  # fmt: skip


def test_dual_path_rnn_equals_speechbrain() -> None:
    peer = pytest.importorskip("speechbrain.lobes.models.dual_path")
    theirs = peer.Dual_Path_Model(
        SIZE,
        12,
        peer.SBRNNBlock(12, 10, 2, bidirectional=True),
        peer.SBRNNBlock(12, 10, 2, bidirectional=True),
        num_layers=2,
        norm="gln",
        K=CHUNK,
        num_spks=SOURCES,
    )
    _randomise(theirs)
    ours = DualPathRNNMasker(
        num_features=SIZE,
        num_sources=SOURCES,
        bottleneck_size=12,
        hidden_size=10,
        chunk_size=CHUNK,
        num_blocks=2,
        num_layers=2,
        bottleneck_bias=False,
        margin="half",
    )
    state = theirs.state_dict()
    frame = convert_masknet({name: x for name, x in state.items() if "dual_mdl" not in name})
    missing = ours.load_state_dict(frame, strict=False).missing_keys
    assert all(name.startswith("blocks.") for name in missing)
    for block, peer_block in zip(ours.blocks, theirs.dual_mdl):
        for side in ("intra", "inter"):
            mine, norm = getattr(block, side), getattr(block, f"{side}_norm")
            _copy_lstm(mine.layers, getattr(peer_block, f"{side}_mdl").mdl.rnn)
            mine.linear.load_state_dict(getattr(peer_block, f"{side}_linear").w.state_dict())
            for name, value in getattr(peer_block, f"{side}_norm").state_dict().items():
                getattr(norm, name).data.copy_(value.flatten())
    _assert_masks_close(ours, _speechbrain_masks(theirs))


@pytest.mark.parametrize(
    ("theirs_options", "ours_options"),
    [
        ({}, {}),
        ({"mask_act": "sigmoid", "num_layers": 2}, {"mask": "sigmoid", "num_layers": 2}),
        (
            {"bidirectional": False, "rnn_type": "GRU", "norm_type": "cLN"},
            {"bidirectional": False, "cell": "gru", "norm": "frame"},
        ),
    ],
    ids=["published", "sigmoid", "one_way_gru"],
)
def test_dual_path_rnn_equals_asteroid(
    theirs_options: dict[str, Any], ours_options: dict[str, Any]
) -> None:
    peer = pytest.importorskip("asteroid.masknn.recurrent")
    theirs = peer.DPRNN(
        SIZE, SOURCES, bn_chan=12, hid_size=10, chunk_size=CHUNK, n_repeats=2, **theirs_options
    )
    _randomise(theirs)
    ours = DualPathRNNMasker(
        num_features=SIZE,
        num_sources=SOURCES,
        bottleneck_size=12,
        hidden_size=10,
        chunk_size=CHUNK,
        num_blocks=2,
        **ours_options,
    )
    _copy_asteroid(ours, theirs)
    _assert_masks_close(ours, lambda x: theirs(x).transpose(2, 3))


def _copy_asteroid(ours: DualPathRNNMasker, theirs: Any) -> None:
    def copy(mine: nn.Module, peer: Any) -> None:
        names = ("gamma", "beta") if hasattr(peer, "gamma") else ("weight", "bias")
        for name, other in zip(("weight", "bias"), names):
            if getattr(mine, name) is not None:
                value = getattr(peer, other).detach()
                getattr(mine, name).data.copy_(value.reshape(getattr(mine, name).shape))

    copy(ours.input_norm, theirs.bottleneck[0])
    copy(ours.bottleneck, theirs.bottleneck[1])
    for block, peer in zip(ours.blocks, theirs.net):
        for side in ("intra", "inter"):
            mine = getattr(block, side)
            _copy_lstm(mine.layers, getattr(peer, f"{side}_RNN").rnn)
            copy(mine.linear, getattr(peer, f"{side}_linear"))
            copy(getattr(block, f"{side}_norm"), getattr(peer, f"{side}_norm"))
    ours.prelu.load_state_dict(theirs.first_out[0].state_dict())
    copy(ours.split, theirs.first_out[1])
    gates = (theirs.net_out[0], theirs.net_gate[0])
    ours.gate.weight.data.copy_(torch.cat([gate.weight.detach().flatten(1) for gate in gates]))
    ours.gate.bias.data.copy_(torch.cat([gate.bias.detach() for gate in gates]))
    ours.output.weight.data.copy_(theirs.mask_net.weight.detach().flatten(1))


def test_light_sepformer_equals_speechbrain() -> None:
    """The RE-SepFormer with the mean as memory, for lengths that do not fill their last chunk:
    for those that do, theirs adds one more chunk of zeros.
    """
    peer = pytest.importorskip("speechbrain.lobes.models.resepformer")
    block = peer.SBTransformerBlock_wnormandskip(
        2, SIZE, HEADS, 24, dropout=0.0, use_positional_encoding=True, norm_before=True
    )
    theirs = peer.ResourceEfficientSeparator(
        SIZE,
        causal=False,
        num_spk=SOURCES,
        layer=3,
        segment_size=CHUNK,
        mem_type="av",
        seg_model=block,
        mem_model=block,
    )
    _randomise(theirs)
    ours = LightSepFormerMasker(
        num_features=SIZE,
        num_sources=SOURCES,
        chunk_size=CHUNK,
        num_blocks=3,
        num_layers=2,
        num_heads=HEADS,
        feedforward_size=24,
    )
    _copy_light(ours, theirs.model)
    for frames in (37, 3):
        x = torch.randn(1, frames, SIZE)
        want = theirs(x.transpose(1, 2)).permute(1, 0, 3, 2)
        torch.testing.assert_close(ours(x, torch.tensor([frames])), want, atol=1e-4, rtol=1e-4)


def _copy_light(ours: LightSepFormerMasker, theirs: Any) -> None:
    """Copy block by block under the names that `convert_masknet` knows."""
    for models, norms, peers in (
        (ours.intra, ours.intra_norms, theirs.seg_model),
        (ours.inter, ours.inter_norms, theirs.mem_model),
    ):
        for model, norm, peer in zip(models, norms, peers):
            for mine, layer in zip(model.layers, peer.mdl.layers):
                mine.attention.in_proj.weight.data.copy_(layer.self_att.att.in_proj_weight.data)
                mine.attention.in_proj.bias.data.copy_(layer.self_att.att.in_proj_bias.data)
                mine.attention.out_proj.load_state_dict(layer.self_att.att.out_proj.state_dict())
                mine.feedforward.expand.load_state_dict(layer.pos_ffn.ffn[0].state_dict())
                mine.feedforward.reduce.load_state_dict(layer.pos_ffn.ffn[3].state_dict())
                mine.attention_norm.load_state_dict(layer.norm1.norm.state_dict())
                mine.feedforward_norm.load_state_dict(layer.norm2.norm.state_dict())
            model.norm.load_state_dict(peer.mdl.norm.norm.state_dict())
            norm.weight.data.copy_(peer.norm.weight.data.flatten())
            norm.bias.data.copy_(peer.norm.bias.data.flatten())
    ours.prelu.load_state_dict(theirs.output_fc[0].state_dict())
    # Theirs keeps the sources of a feature together, ours the features of a source.
    shape = (SIZE, SOURCES)
    weight, bias = theirs.output_fc[1].weight.data, theirs.output_fc[1].bias.data
    ours.output.weight.data.copy_(weight.view(*shape, SIZE).transpose(0, 1).reshape(-1, SIZE))
    ours.output.bias.data.copy_(bias.view(shape).T.flatten())
