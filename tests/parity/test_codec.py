"""Our codec against EnCodec's own package and transformers', with the same random weights.

All codes are equal. Audio is float32: within 1e-5 of its largest value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.convert.encodec import build_encodec, convert_encodec, load_encodec
from speechkit.data.errors import DataError
from speechkit.models.codec import Codec

MONO, STEREO = 24000, 48000


@torch.no_grad()
def _fill_codebooks(model: Any, channels: int) -> None:
    """Give the codebooks, zeros at first, vectors near the latents, so that many codes are used.

    They lie as far from each other as latents from zero: nearer, and now and then two codes would
    be equally near to a latent but for its rounding.
    """
    generator = torch.Generator().manual_seed(1)
    latents = model.encoder(_noise(channels, 48000) / (0.3 if channels > 1 else 1.0))
    residual, spread = latents[0].T, latents.std()
    buffers = dict(model.named_buffers())
    books = [name for name in buffers if name.endswith("codebook.embed")]
    assert len(books) in (16, 32)
    for name in books:
        chosen = torch.randint(len(residual), (1024,), generator=generator)
        buffers[name].copy_(residual[chosen] + spread * torch.randn(1024, 128, generator=generator))
        spread = 0.9 * spread  # trained codebooks shrink about as slowly
        buffers[name.replace("embed", "inited")].fill_(1.0)
        residual = residual - buffers[name][torch.cdist(residual, buffers[name]).argmin(1)]


def _original(rate: int) -> Any:
    peer = pytest.importorskip("encodec")
    torch.manual_seed(0)
    build = peer.EncodecModel.encodec_model_24khz
    if rate == STEREO:
        build = peer.EncodecModel.encodec_model_48khz
    model = build(pretrained=False)
    _fill_codebooks(model, 2 if rate == STEREO else 1)
    return model


def _transformers(rate: int) -> Any:
    peer = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = peer.EncodecConfig()
    if rate == STEREO:
        config = peer.EncodecConfig(
            target_bandwidths=[3.0, 6.0, 12.0, 24.0],
            sampling_rate=STEREO,
            audio_channels=2,
            normalize=True,
            chunk_length_s=1.0,
            overlap=0.01,
            norm_type="time_group_norm",
            use_causal_conv=False,
        )
    model = peer.EncodecModel(config).eval()
    with torch.no_grad():  # theirs starts with weights that make the latents explode or vanish
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.mul_(0.5)
    _fill_codebooks(model, 2 if rate == STEREO else 1)
    return model


def _noise(channels: int, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.3 * torch.randn(1, channels, samples, generator=generator)


def _assert_audio(got: Tensor, want: Tensor) -> None:
    got, want = got.detach(), want.detach()
    assert want.abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("samples", [36000, 24137, 319, 5])
def test_mono_equals_encodec(samples: int) -> None:
    theirs = _original(MONO)
    ours = build_encodec(theirs.state_dict()).fold_weight_norm()
    x = _noise(1, samples)
    for kbps in (1.5, 24.0):
        theirs.set_target_bandwidth(kbps)
        with torch.no_grad():
            [(codes, _)] = theirs.encode(x)
            want = theirs.decode([(codes, None)])
        encoded = ours.encode(x, kbps=kbps)
        assert kbps < 24 or len(codes.unique()) > 20
        assert torch.equal(encoded.codes, codes)
        _assert_audio(ours.decode(codes), want)
        assert ours.decode(*encoded).shape == x.shape


def test_mono_in_training_equals_encodec() -> None:
    """The network as a whole, unfolded, not in blocks: latents and gradients."""
    theirs = _original(MONO)
    ours = build_encodec(theirs.state_dict())
    x = _noise(1, 3333).requires_grad_()
    want, got = theirs.encoder(x), ours.encoder(x).data.transpose(1, 2)
    _assert_audio(got, want)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    want, got = theirs.decoder(want.detach()), ours.decoder(got.detach().transpose(1, 2)).data
    _assert_audio(got, want)


@pytest.mark.parametrize("samples", [60000, 47600, 48000, 3000])
def test_stereo_equals_encodec(samples: int) -> None:
    """Segments of a second, whole and not, one of which ends with the recording."""
    theirs = _original(STEREO)
    ours = build_encodec(theirs.state_dict())
    x = _noise(2, samples)
    theirs.set_target_bandwidth(6.0)
    with torch.no_grad():
        frames = theirs.encode(x)
        want = theirs.decode(frames)[..., :samples]
    encoded = ours.encode(x, kbps=6.0)
    for index, (codes, scale) in enumerate(frames):
        start = 150 * index
        assert torch.equal(encoded.codes[..., start : start + codes.shape[2]], codes)
        assert encoded.scales is not None
        torch.testing.assert_close(encoded.scales[:, index], scale[:, 0])
    assert int(encoded.lengths) == 150 * (len(frames) - 1) + frames[-1][0].shape[2]
    _assert_audio(ours.decode(*encoded), want)


def test_mono_equals_transformers() -> None:
    theirs = _transformers(MONO)
    ours = build_encodec(theirs.state_dict())
    x = _noise(1, 30011)
    with torch.no_grad():
        out = theirs(x, bandwidth=12.0)
    encoded = ours.encode(x, kbps=12.0)
    assert len(out.audio_codes.unique()) > 200
    assert torch.equal(encoded.codes, out.audio_codes[0])
    _assert_audio(ours.decode(*encoded), out.audio_values)


def test_stereo_equals_transformers() -> None:
    theirs = _transformers(STEREO)
    ours = build_encodec(theirs.state_dict())
    x = _noise(2, 47520 + 48000)  # theirs wants whole segments
    with torch.no_grad():
        encoded_theirs = theirs.encode(x, bandwidth=12.0)
        want = theirs.decode(
            encoded_theirs.audio_codes,
            encoded_theirs.audio_scales,
            last_frame_pad_length=encoded_theirs.last_frame_pad_length,
        ).audio_values
    encoded = ours.encode(x, kbps=12.0)
    joined = torch.cat(list(encoded_theirs.audio_codes), dim=2)
    pad = encoded_theirs.last_frame_pad_length
    assert torch.equal(encoded.codes, joined[..., : joined.shape[2] - pad])
    _assert_audio(ours.decode(*encoded), want[..., : x.shape[2]])


def _published() -> dict[str, Tensor]:
    """Names and shapes of the published 24 kHz checkpoint of the ``encodec`` package, as zeros."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(
        name: str, outputs: int, inputs: int, kernel: int, *, transposed: bool = False
    ) -> None:
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)
        shapes[f"{name}.weight_g"] = (first, 1, 1)
        shapes[f"{name}.weight_v"] = (first, second, kernel)

    def unit(name: str, width: int) -> None:
        conv(f"{name}.block.1.conv.conv", width // 2, width, 3)
        conv(f"{name}.block.3.conv.conv", width, width // 2, 1)
        conv(f"{name}.shortcut.conv.conv", width, width, 1)

    conv("encoder.model.0.conv.conv", 32, 1, 7)
    for stage, stride in enumerate((2, 4, 5, 8)):
        unit(f"encoder.model.{3 * stage + 1}", 32 << stage)
        name = f"encoder.model.{3 * stage + 3}.conv.conv"
        conv(name, 64 << stage, 32 << stage, 2 * stride)
    conv("encoder.model.15.conv.conv", 128, 512, 7)
    conv("decoder.model.0.conv.conv", 512, 128, 7)
    for stage, stride in enumerate((8, 5, 4, 2)):
        name = f"decoder.model.{3 * stage + 3}.convtr.convtr"
        conv(name, 256 >> stage, 512 >> stage, 2 * stride, transposed=True)
        unit(f"decoder.model.{3 * stage + 4}", 256 >> stage)
    conv("decoder.model.15.conv.conv", 1, 32, 7)
    for lstm in ("encoder.model.13", "decoder.model.1"):
        for layer in (0, 1):
            for part in ("ih", "hh"):
                shapes[f"{lstm}.lstm.weight_{part}_l{layer}"] = (2048, 512)
                shapes[f"{lstm}.lstm.bias_{part}_l{layer}"] = (2048,)
    for layer in range(32):
        book = f"quantizer.vq.layers.{layer}._codebook"
        shapes[f"{book}.inited"] = (1,)
        shapes[f"{book}.cluster_size"] = (1024,)
        shapes[f"{book}.embed"] = shapes[f"{book}.embed_avg"] = (1024, 128)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def test_published_names_are_all_known() -> None:
    """The 24 kHz checkpoint has 252 tensors: each has a place of its shape, and none is left."""
    weights = _published()
    assert len(weights) == 252
    assert sum(value.numel() for value in weights.values()) == 23273218
    state, settings = convert_encodec(weights)
    codec = build_encodec(weights)
    assert state.keys() == codec.state_dict().keys()
    assert settings["encoder"]["strides"] == [2, 4, 5, 8]
    assert codec.rates_kbps == [1.5, 3.0, 6.0, 12.0, 24.0]
    assert (codec.sample_rate, codec.frame_rate, codec.channels) == (24000, 75.0, 1)
    assert sum(parameter.numel() for parameter in codec.parameters()) == 14851810
    assert not codec.quantizer.initialised  # these zeros say so


def test_published_layouts_agree_with_the_peers() -> None:
    """The names above are those of both peers' models."""
    theirs = {name: value.shape for name, value in _original(MONO).state_dict().items()}
    assert theirs == {name: value.shape for name, value in _published().items()}
    old = {}  # transformers' files were written with the names of torch's older weight norm
    for name, value in _transformers(MONO).state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        old[name.replace("parametrizations.weight.original1", "weight_v")] = value
    assert convert_encodec(old).state.keys() == convert_encodec(_published()).state.keys()


def _without(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != name}


def test_conversion_says_what_does_not_fit(tmp_path: Path) -> None:
    weights = _published()
    bias = "encoder.model.3.conv.conv.bias"
    with pytest.raises(DataError, match=r"Missing key.*encoder.stages.0.resample.conv.bias"):
        build_encodec(_without(weights, bias))
    for strange in ("lm.weight", "encoder.model.2.alpha", "encoder.model.3.conv.conv.gain"):
        with pytest.raises(DataError, match=f"does not have:\n  '{strange}'"):
            convert_encodec({**weights, strange: torch.zeros(1)})
    with pytest.raises(DataError, match="no LSTM 'decoder"):
        convert_encodec({name: x for name, x in weights.items() if "decoder.model.1." not in name})
    with pytest.raises(DataError, match="no codebooks"):
        convert_encodec({name: x for name, x in weights.items() if "quantizer" not in name})
    torch.save([torch.zeros(1)], tmp_path / "list.th")
    with pytest.raises(DataError, match=r"list.th holds something other than named tensors"):
        load_encodec(tmp_path / "list.th")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match=r"text.safetensors is not a safetensors file"):
        load_encodec(tmp_path / "text.safetensors")


def test_files_open(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: 0.01 * torch.randn(x.shape) for name, x in _published().items()}
    weights |= {name: torch.ones(1) for name in weights if name.endswith("inited")}
    torch.save(weights, tmp_path / "encodec_24khz.th")
    save_file(weights, tmp_path / "model.safetensors")
    first, second = (load_encodec(path) for path in sorted(tmp_path.iterdir()))
    assert isinstance(first, Codec)
    x = _noise(1, 640)
    assert torch.equal(first.encode(x).codes, second.encode(x).codes)


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        raise_it: Any = pytest.fail
        return raise_it, ("a pickle was run",)


def test_a_pickle_that_is_code_is_refused(tmp_path: Path) -> None:
    torch.save({"encoder.model.0.conv.conv.bias": _Malicious()}, tmp_path / "bad.th")
    with pytest.raises(DataError, match=r"bad.th is not a file of tensors alone"):
        load_encodec(tmp_path / "bad.th")
