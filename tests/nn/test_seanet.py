"""SEANet encoder and decoder: lengths, causality, options, streaming."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.model_folder.description import build, describe
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder, fold_weight_norm
from speechkit.nn.seanet_conv import SEANetConv, SEANetTransposedConv, TimeGroupNorm, pad_ends
from speechkit.nn.seanet_stream import DecoderStream, EncoderStream, decode_blocks, encode_blocks
from speechkit.nn.seanet_units import InverseSTFTHead, Snake

HOP = 12
SIZES: dict[str, Any] = {"channels": 2, "num_filters": 4, "latent_size": 6, "residual_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "mirrored": {"pad_mode": "reflect"},
    "snake": {"activation": "snake", "lstm_layers": 0},
    "centred": {"causal": False, "norm": "time_group", "pad_mode": "reflect"},
    "centred_zeros": {"causal": False, "norm": "time_group"},
    "plain": {"norm": "none", "lstm_layers": 1},
}
CAUSAL = ("causal", "mirrored", "snake", "plain")


def _assert_close(got: Tensor, want: Tensor, *, atol: float, rtol: float) -> None:
    """Compare up to rounding, which is that of the largest values: random networks may be loud."""
    largest = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got, want, atol=atol * largest, rtol=rtol)


def _encoder(kind: str) -> SEANetEncoder:
    torch.manual_seed(0)
    return SEANetEncoder(strides=(2, 2, 3), **SIZES, **KINDS[kind]).eval()


def _decoder(kind: str, istft_stages: int = 0) -> SEANetDecoder:
    torch.manual_seed(0)
    return SEANetDecoder(
        strides=(3, 2, 2), istft_stages=istft_stages, **SIZES, **KINDS[kind]
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_ignores_padding(kind: str) -> None:
    """Lengths that fill their last frame and that do not, that are shorter than a kernel, none."""
    encoder = _encoder(kind)
    lengths = torch.tensor([101, 96, 61, 13, 7, 2, 1, 0])
    x = torch.randn(len(lengths), 2, 101)
    for i, length in enumerate(lengths):
        x[i, :, length:] = float("nan")
    data, frames = encoder(x, lengths)
    assert frames.tolist() == [-(-int(length) // HOP) for length in lengths]
    assert data.shape == (len(lengths), 9, 6)
    for i, length in enumerate(lengths[:-1]):
        alone = encoder(x[i : i + 1, :, :length]).data[0]
        assert len(alone) == frames[i]
        _assert_close(data[i, : frames[i]], alone, atol=1e-5, rtol=1e-4)
        assert not data[i, frames[i] :].any()


@pytest.mark.parametrize("istft_stages", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_decoder_ignores_padding(kind: str, istft_stages: int) -> None:
    decoder = _decoder(kind, istft_stages)
    lengths = torch.tensor([9, 8, 3, 1])
    z = torch.randn(4, 9, 6)
    for i, length in enumerate(lengths):
        z[i, length:] = float("nan")
    data, samples = decoder(z, lengths)
    assert samples.tolist() == (HOP * lengths).tolist()
    assert data.shape == (4, 2, 9 * HOP)
    for i, length in enumerate(lengths):
        alone = decoder(z[i : i + 1, :length]).data[0]
        assert alone.shape == (2, samples[i])
        _assert_close(data[i, :, : samples[i]], alone, atol=1e-5, rtol=1e-4)
        assert not data[i, :, samples[i] :].any()


@pytest.mark.parametrize("kind", ["causal", "snake", "plain"])
def test_nothing_after_a_frame_is_needed_for_it(kind: str) -> None:
    encoder, decoder = _encoder(kind), _decoder(kind, istft_stages=1)
    x = torch.randn(1, 2, 10 * HOP)
    z = encoder(x).data
    for frames in (1, 2, 7):
        _assert_close(encoder(x[..., : frames * HOP]).data, z[:, :frames], atol=1e-5, rtol=1e-4)
        changed = x.clone()
        changed[..., frames * HOP :] += 1.0
        assert (encoder(changed).data - z)[:, frames:].abs().max() > 1e-3
        _assert_close(
            decoder(z[:, :frames]).data, decoder(z).data[..., : frames * HOP], atol=1e-5, rtol=1e-4
        )


def test_mirrored_start_looks_ahead_and_nothing_else_does() -> None:
    encoder = _encoder("mirrored")
    x = torch.randn(1, 2, 40 * HOP)
    x.requires_grad_()
    z = encoder(x).data
    reach = []
    for frame in (0, 8, 20):
        (grad,) = torch.autograd.grad(z[0, frame].sum(), x, retain_graph=True)
        reach.append(int(grad.abs().sum((0, 1)).nonzero().max()))
    assert reach[0] >= HOP
    assert reach[1:] == [9 * HOP - 1, 21 * HOP - 1]


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("size", [1, 5, HOP, 31, 1000])
def test_streams_give_what_the_whole_gives(kind: str, size: int) -> None:
    encoder = _encoder(kind)
    for total in (20 * HOP + 5, 5, 20):
        x = torch.randn(2, 2, total)
        want = encoder(x).data
        stream = EncoderStream(encoder, 2)
        parts = [stream.push(part) for part in x.split(size, 2)]
        parts.append(stream.push(x[..., :0], last=True))
        _assert_close(torch.cat(parts, 1), want, atol=1e-5, rtol=1e-4)
        if kind != "mirrored":  # a frame comes with its last sample
            assert sum(part.shape[1] for part in parts[:-1]) == total // HOP
        for istft_stages in (0, 2):
            decoder = _decoder(kind, istft_stages)
            speaker = DecoderStream(decoder, 2)
            waves = [speaker.push(part) for part in want.split(size, 1)]
            if kind != "mirrored":
                assert [wave.shape[2] for wave in waves] == [
                    part.shape[1] * HOP for part in want.split(size, 1)
                ]
            waves.append(speaker.push(want[:, :0], last=True))
            _assert_close(torch.cat(waves, 2), decoder(want).data, atol=1e-4, rtol=1e-4)


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkit.nn import seanet_stream, seanet_stream_parts

    monkeypatch.setattr(seanet_stream_parts, "BLOCK_ROWS", 16)
    monkeypatch.setattr(seanet_stream, "BLOCK_FRAMES", 7)
    for kind in CAUSAL:
        encoder, decoder = _encoder(kind), _decoder(kind)
        for batch in (1, 3):
            x = torch.randn(batch, 2, 33 * HOP + 1)
            z = encoder(x).data
            _assert_close(encode_blocks(encoder, x), z, atol=1e-5, rtol=1e-4)
            _assert_close(decode_blocks(decoder, z), decoder(z).data, atol=1e-5, rtol=1e-4)


def test_streams_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"SEANetEncoder\(causal=False\) looks at the whole"):
        EncoderStream(_encoder("centred"))
    stream = EncoderStream(_encoder("causal"))
    with pytest.raises(ValueError, match="opened with batch_size=1, and this piece has 2"):
        stream.push(torch.zeros(2, 2, 5))
    stream.push(torch.zeros(1, 2, 5), last=True)
    with pytest.raises(ValueError, match="the stream is finished"):
        stream.push(torch.zeros(1, 2, 5))


def test_published_size() -> None:
    """14.85 million parameters at 24 kHz: 320 samples a frame."""
    encoder, decoder = SEANetEncoder(), SEANetDecoder()
    count = sum(p.numel() for net in (encoder, decoder) for p in net.parameters())
    assert count == 14_851_810
    assert encoder.hop_length == decoder.hop_length == 320


@pytest.mark.parametrize("kind", ["causal", "snake"])
def test_folding_keeps_outputs_and_describes_itself(kind: str) -> None:
    for net, x in (
        (_encoder(kind), torch.randn(1, 2, 50)),
        (_decoder(kind, 1), torch.randn(1, 5, 6)),
    ):
        want = net(x).data
        folded = fold_weight_norm(copy.deepcopy(net))
        _assert_close(folded(x).data, want, atol=1e-5, rtol=1e-4)
        assert sum(p.numel() for p in folded.parameters()) < sum(
            p.numel() for p in net.parameters()
        )
        rebuilt = build(describe(folded)).eval()
        rebuilt.load_state_dict(folded.state_dict())
        assert torch.equal(rebuilt(x).data, folded(x).data)


def test_every_parameter_learns() -> None:
    for kind in KINDS:
        encoder, decoder = _encoder(kind).train(), _decoder(kind, 1).train()
        x = torch.randn(2, 2, 64)
        decoder(encoder(x).data).data.square().sum().backward()
        for net in (encoder, decoder):
            lazy = [
                n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()
            ]
            # What a norm over the channels of a single latent frame takes away is 0, or nearly.
            assert not [name for name in lazy if "time_norm" not in name], kind


def test_mirrored_ends_are_torch_own() -> None:
    x = torch.arange(1.0, 9.0).view(1, 1, 8)
    got = pad_ends(x, 4, 2, mode="reflect")
    assert torch.equal(got, torch.nn.functional.pad(x, (4, 2), "reflect"))
    batch = pad_ends(x.repeat(2, 1, 1), 4, 2, mode="reflect", lengths=torch.tensor([8, 6]))
    assert torch.equal(batch[:1], got)
    assert torch.equal(batch[1:, :, :12], torch.nn.functional.pad(x[..., :6], (4, 2), "reflect"))


def test_group_norm_is_torch_own() -> None:
    norm, theirs = TimeGroupNorm(num_features=6), torch.nn.GroupNorm(1, 6)
    x: Tensor = torch.randn(2, 6, 9)
    torch.testing.assert_close(norm(x), theirs(x))
    torch.testing.assert_close(norm(x, torch.tensor([9, 9])), theirs(x))


def test_inverse_stft_undoes_a_windowed_transform() -> None:
    """Frames of a signal's own transform, added up, are the signal."""
    head = InverseSTFTHead(in_channels=1, channels=1, hop_length=8)
    x = torch.randn(1, 8 * 20)
    frames = x.unfold(1, 32, 8) * torch.hann_window(32)
    spectrum = torch.fft.rfft(frames).transpose(1, 2)  # (1, bins, T)
    features = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=1)
    got = head.overlap_add(head.frames(features))[0, 0]
    torch.testing.assert_close(got[24:-24], x[0, 24:-24], atol=1e-4, rtol=1e-4)


def test_snake_is_its_formula() -> None:
    snake = Snake(channels=3)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([[0.5], [1.0], [3.0]]))
    x = torch.randn(2, 3, 7)
    for i, alpha in enumerate((0.5, 1.0, 3.0)):
        want = x[:, i] + torch.sin(alpha * x[:, i]) ** 2 / alpha
        torch.testing.assert_close(snake(x)[:, i], want)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="norm='time_group' looks at the whole item"):
        SEANetEncoder(norm="time_group")
    with pytest.raises(ValueError, match=r"unknown norm 'batch': choose from \['weight'"):
        SEANetTransposedConv(in_channels=1, out_channels=1, stride=2, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown pad_mode 'same'"):
        SEANetConv(in_channels=1, out_channels=1, kernel_size=3, pad_mode="same")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        SEANetDecoder(activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strides must be one number or more.*\[\]"):
        SEANetEncoder(strides=())
    with pytest.raises(ValueError, match="istft_stages=5: there are 4 strides"):
        SEANetDecoder(istft_stages=5)
