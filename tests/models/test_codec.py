"""The codec as a whole: shapes, rates, padding, segments, streaming, saving."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.data.errors import DataError
from speechkit.models.codec import Codec
from speechkit.nn.quantize import ResidualVectorQuantizer
from speechkit.nn.quantize_scalar import FiniteScalarQuantizer
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder
from speechkit.pretrained import load, save

RATE, HOP = 1000, 20
SIZES: dict[str, Any] = {"num_filters": 4, "latent_size": 8, "lstm_layers": 1}


def _codec(*, stereo: bool = False, quantizer: Any = None, **network: Any) -> Codec:
    torch.manual_seed(0)
    if stereo:
        network = {"causal": False, "norm": "time_group", "pad_mode": "reflect", **network}
    channels = 2 if stereo else 1
    sizes = {**SIZES, "channels": channels, **network}
    istft_stages = sizes.pop("istft_stages", 0)
    level = sizes.pop("level", 1.0)
    return Codec(
        sample_rate=RATE,
        channels=channels,
        encoder=SEANetEncoder(strides=(4, 5), **sizes),
        quantizer=quantizer
        or ResidualVectorQuantizer(
            latent_size=8, codebook_size=16, num_codebooks=4, kmeans_iterations=0
        ),
        decoder=SEANetDecoder(strides=(5, 4), istft_stages=istft_stages, **sizes),
        normalize=stereo,
        segment_seconds=0.5 if stereo else None,
        overlap=0.1,
        level=level,
    ).eval()


def _noise(items: int, channels: int, samples: int) -> Tensor:
    return torch.randn(items, channels, samples, generator=torch.Generator().manual_seed(1))


def test_rates() -> None:
    codec = _codec()
    assert (codec.hop_length, codec.frame_rate) == (HOP, 50.0)
    assert codec.rates_kbps == [0.2, 0.4, 0.8]
    assert [codec.codebooks_for(rate) for rate in codec.rates_kbps] == [1, 2, 4]
    assert codec.encode(_noise(1, 1, 100), kbps=0.4).codes.shape == (1, 2, 5)
    with pytest.raises(DataError, match=r"no 0.6 kbit/s: choose one of 0.2, 0.4, 0.8"):
        codec.encode(_noise(1, 1, 100), kbps=0.6)
    with pytest.raises(ValueError, match=r"a codebook is worth 0.2 kbit/s.*between 0.2 and 0.8"):
        Codec(
            sample_rate=RATE,
            channels=1,
            encoder=codec.encoder,
            quantizer=codec.quantizer,
            decoder=codec.decoder,
            rates_kbps=[0.1, 0.4],
        )


def test_published_rates() -> None:
    sizes: dict[str, Any] = {"num_filters": 2, "latent_size": 2, "lstm_layers": 0}
    for rate, served in (
        (24000, [0.75, 1.5, 3.0, 6.0, 12.0, 24.0]),
        (16000, [0.5, 1, 2, 4, 8, 16]),
    ):
        codec = Codec(
            sample_rate=rate,
            channels=1,
            encoder=SEANetEncoder(**sizes),
            quantizer=ResidualVectorQuantizer(latent_size=2),
            decoder=SEANetDecoder(**sizes),
        )
        assert codec.rates_kbps == served


@pytest.mark.parametrize("stereo", [False, True])
def test_a_batch_is_its_items(stereo: bool) -> None:
    """Lengths in one segment and in several, of whole frames and not, with rubbish behind."""
    codec = _codec(stereo=stereo)
    lengths = torch.tensor([1203, 1000, 455, 450, 467, 100, 3, 0])
    x = _noise(len(lengths), 1 + stereo, 1203)
    for i, length in enumerate(lengths):
        x[i, :, length:] = float("nan")
    encoded = codec.encode(x, lengths, num_codebooks=3)
    decoded = codec.decode(*encoded)
    assert decoded.shape == x.shape
    for i, length in enumerate(lengths):
        alone = codec.encode(x[i : i + 1, :, :length], num_codebooks=3)
        frames = int(alone.lengths)
        assert frames == encoded.lengths[i] == alone.codes.shape[2]
        assert torch.equal(encoded.codes[i, :, :frames], alone.codes[0])
        wave = codec.decode(*alone)
        assert wave.shape == (1, 1 + stereo, length)
        torch.testing.assert_close(decoded[i, :, :length], wave[0], atol=1e-5, rtol=1e-4)
        assert not decoded[i, :, length:].any()


@pytest.mark.parametrize("stereo", [False, True])
def test_training_outputs_are_those_of_coding(stereo: bool) -> None:
    codec = _codec(stereo=stereo)
    x, lengths = _noise(2, 1 + stereo, 401), torch.tensor([401, 230])
    out = codec(x, lengths, num_codebooks=2)
    encoded = codec.encode(x, lengths, num_codebooks=2)
    assert torch.equal(out.codes, encoded.codes)
    assert torch.equal(out.lengths, encoded.lengths)
    torch.testing.assert_close(out.estimate, codec.decode(*encoded), atol=1e-5, rtol=1e-4)
    assert out.commitment.shape == (2,)
    full = codec(x)
    torch.testing.assert_close(full.estimate[:1], codec(x[:1]).estimate, atol=1e-5, rtol=1e-4)


def test_loudness_is_taken_away_and_given_back() -> None:
    codec = _codec(stereo=True)
    x = _noise(1, 2, 300)
    quiet, loud = codec.encode(0.01 * x), codec.encode(x)
    assert torch.equal(quiet.codes, loud.codes)
    torch.testing.assert_close(
        100 * codec.decode(*quiet), codec.decode(*loud), atol=1e-4, rtol=1e-3
    )
    silent = codec.decode(*codec.encode(0 * x))
    assert silent.abs().max() < 1e-6


def test_segments_are_faded_into_one_another() -> None:
    codec = _codec(stereo=True)
    x = _noise(1, 2, 950)
    whole = codec.decode(*codec.encode(x))
    alone = [codec(part).estimate.detach() for part in (x[..., :500], x[..., 450:])]
    torch.testing.assert_close(whole[..., :450], alone[0][..., :450], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[..., 500:900], alone[1][..., 50:450], atol=1e-5, rtol=1e-4)
    share = (torch.arange(50) + 1) / 51
    mixed = alone[0][..., 450:500] * (1 - share) + alone[1][..., :50] * share
    torch.testing.assert_close(whole[..., 450:500], mixed, atol=1e-5, rtol=1e-4)


def test_number_of_codebooks_is_drawn_in_training() -> None:
    codec = _codec().train()
    state = torch.get_rng_state()
    for layer in codec.quantizer.layers:  # type: ignore[union-attr]
        layer.threshold_dead = 0.0
    drawn = {
        codec(_noise(1, 1, 40), generator=torch.Generator().manual_seed(seed)).codes.shape[1]
        for seed in range(20)
    }
    assert drawn == {1, 2, 4}
    assert codec(_noise(1, 1, 40)).codes.shape[1] == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(latent_size=8, codebook_size=16, num_codebooks=4)
    codec = _codec(quantizer=quantizer).train()
    optimizer = torch.optim.Adam(codec.parameters(), lr=3e-3)
    time = torch.arange(200) / RATE
    x = torch.stack([torch.sin(6.28 * f * time) for f in (10, 35)]).unsqueeze(1)
    losses = []
    for _ in range(36):
        out = codec(x)
        loss = (out.estimate - x).abs().mean() + 0.1 * out.commitment.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_level_divides_what_comes_in_and_multiplies_what_goes_out() -> None:
    plain, faint = _codec(), _codec(level=0.125)
    faint.load_state_dict(plain.state_dict())
    x = _noise(2, 1, 210)
    want, got = plain.encode(x), faint.encode(0.125 * x)
    assert torch.equal(got.codes, want.codes)
    torch.testing.assert_close(faint.decode(*got), 0.125 * plain.decode(*want))
    torch.testing.assert_close(faint(0.125 * x).estimate, 0.125 * plain(x).estimate)
    with pytest.raises(ValueError, match="level=0 must be above 0"):
        _codec(level=0)


def test_without_codebooks_the_latents_go_on_as_they_are() -> None:
    codec = _codec().train()
    x = _noise(2, 1, 210).requires_grad_()
    before = codec.state_dict()["quantizer.layers.0.codebook"].clone()
    out = codec(x, torch.tensor([210, 100]), num_codebooks=0)
    latents, _ = codec.encoder(x, torch.tensor([210, 100]))
    want = codec.decoder(latents, torch.tensor([11, 5])).data[..., :210]
    torch.testing.assert_close(out.estimate[0], want[0])
    assert out.codes.shape == (2, 0, 11)
    assert out.commitment.tolist() == [0.0, 0.0]
    assert torch.equal(codec.state_dict()["quantizer.layers.0.codebook"], before)


STREAMS: dict[str, dict[str, Any]] = {
    "zeros": {},
    "level": {"level": 0.1},
    "mirrored": {"pad_mode": "reflect"},
    "snake": {"activation": "snake"},
    "istft": {"istft_stages": 1},
    "scalar": {"quantizer": FiniteScalarQuantizer(latent_size=8, num_codebooks=2)},
    "factorised": {
        "quantizer": ResidualVectorQuantizer(
            latent_size=8, num_codebooks=2, codebook_dim=3, cosine=True, kmeans_iterations=0
        )
    },
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("size", [1, 7, HOP, 33, 2000])
def test_streaming_is_offline(kind: str, size: int) -> None:
    codec = _codec(**STREAMS[kind])
    x = _noise(2, 1, 30 * HOP + 7)
    want = codec.encode(x, num_codebooks=2)
    listener, speaker = codec.streaming(batch_size=2, num_codebooks=2)
    parts = [listener.push(part) for part in x.split(size, 2)]
    parts.append(listener.finish())
    codes = torch.cat(parts, 2)
    assert torch.equal(codes, want.codes)
    assert listener.num_samples == x.shape[2]
    waves = [speaker.push(part) for part in parts if part.shape[2]] + [speaker.finish()]
    wave = torch.cat(waves, 2)[..., : x.shape[2]]
    torch.testing.assert_close(wave, codec.decode(*want), atol=1e-4, rtol=0)
    if kind != "mirrored" and size == HOP:  # a code comes with its frame, samples with their code
        assert [part.shape[2] for part in parts] == [1] * 30 + [0, 1]
        assert [wave.shape[2] for wave in waves] == [HOP] * 31 + [0]


def test_streams_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="training mode"):
        _codec().train().streaming()
    with pytest.raises(ValueError, match="codes whole segments and cannot stream"):
        _codec(stereo=True).streaming()
    with pytest.raises(DataError, match="no 7 kbit/s"):
        _codec().streaming(kbps=7)
    listener, speaker = _codec().streaming()
    with pytest.raises(DataError, match=r"takes samples \(B, 1, t\), not \(1, 2, 5\)"):
        listener.push(torch.zeros(1, 2, 5))
    with pytest.raises(DataError, match="codes lie between 16 and 16; the codebooks have 0 to 15"):
        speaker.push(torch.full((1, 1, 1), 16))


def test_folded_and_saved_codecs_are_the_codec(tmp_path: Path) -> None:
    codec = _codec()
    x = _noise(1, 1, 500)
    want = codec.encode(x)
    folded = copy.deepcopy(codec).fold_weight_norm()
    assert not any("original0" in name for name in folded.state_dict())
    for number, model in enumerate((codec, folded)):
        save(model, tmp_path / str(number))
        opened = load(tmp_path / str(number))
        assert torch.equal(opened.encode(x).codes, want.codes)
        torch.testing.assert_close(opened.decode(*want), codec.decode(*want), atol=1e-5, rtol=1e-4)


def test_bad_input() -> None:
    codec = _codec()
    with pytest.raises(DataError, match=r"takes waveforms \(B, 1, T\), not \(3, 100\)"):
        codec.encode(torch.zeros(3, 100))
    with pytest.raises(DataError, match=r"takes waveforms \(B, 1, T\), not \(1, 2, 100\)"):
        codec(torch.zeros(1, 2, 100))
    with pytest.raises(DataError, match=r"with 1 to 4 codebooks, not \(1, 5, 3\)"):
        codec.decode(torch.zeros(1, 5, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="give decode the scales"):
        _codec(stereo=True).decode(torch.zeros(1, 1, 3, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"disagree about hop_length: .'encoder': 20, 'decoder': 4"
    ):
        Codec(
            sample_rate=RATE,
            channels=1,
            encoder=codec.encoder,
            quantizer=codec.quantizer,
            decoder=SEANetDecoder(strides=(4,), **SIZES),
        )
