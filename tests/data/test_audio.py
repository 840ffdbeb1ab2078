"""Reading audio: equal to soundfile, exact spans, and faults that name the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechkit.data.audio import (
    as_waveform,
    audio_info,
    read_audio,
    read_audio_channels,
    resample,
    stream_audio,
    to_mono,
    write_audio,
)
from speechkit.data.manifest import DataError

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pcm(num_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-32768, 32768, (num_samples, channels), dtype=np.int16)


def wav_bytes(samples: np.ndarray, rate: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Assemble a RIFF file by hand, with chunks before and after the samples."""
    channels = samples.shape[1]
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    data = samples.astype("<i2").tobytes()
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + before
    body += b"data" + struct.pack("<I", len(data)) + data + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


@quick
@given(
    num_samples=st.integers(1, 3000),
    channels=st.integers(1, 3),
    rate=st.sampled_from([8000, 16000, 44100]),
    before=st.lists(st.binary(max_size=5000), max_size=2),
    after=st.binary(max_size=30),
    data=st.data(),
)
def test_fast_path_equals_soundfile(tmp_path, num_samples, channels, rate, before, after, data):
    path = tmp_path / "x.wav"
    extra = b"".join(chunk(b"junk", content) for content in before)
    samples = pcm(num_samples, channels)
    path.write_bytes(wav_bytes(samples, rate, extra, chunk(b"LIST", after)))
    first = data.draw(st.integers(0, num_samples - 1))
    count = data.draw(st.integers(1, num_samples - first))
    expected, expected_rate = soundfile.read(
        path, start=first, frames=count, dtype="float32", always_2d=True
    )
    got, got_rate = read_audio_channels(path, start=first / rate, duration=count / rate)
    assert got_rate == expected_rate == rate
    assert torch.equal(got, torch.from_numpy(expected.T.copy()))
    mono, _ = read_audio(path, start=first / rate, duration=count / rate)
    torch.testing.assert_close(mono, torch.from_numpy(expected.mean(axis=1)), atol=1e-6, rtol=0)
    assert audio_info(path) == (rate, num_samples, channels)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("x.wav", "PCM_16"),
        ("x.wav", "PCM_24"),
        ("x.wav", "PCM_U8"),
        ("x.wav", "FLOAT"),
        ("x.wav", "ULAW"),
        ("x.flac", "PCM_16"),
        ("x.flac", "PCM_24"),
        ("x.ogg", "VORBIS"),
    ],
)
def test_other_encodings_equal_soundfile(tmp_path, name, subtype):
    path = tmp_path / name
    soundfile.write(path, pcm(4000, 2)[:, :].astype(np.float32) / 40000, 16000, subtype=subtype)
    whole = soundfile.read(path, dtype="float32")[0]
    got, rate = read_audio_channels(path, start=0.05, duration=0.1)
    assert rate == 16000
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.from_numpy(whole[800:2400].T.copy()))


def test_results_do_not_share_memory(tmp_path):
    for n in (1, 2):
        write_audio(tmp_path / f"{n}.wav", torch.full((100,), n / 4), 8000)
    first, _ = read_audio(tmp_path / "1.wav")
    read_audio(tmp_path / "2.wav")
    assert torch.equal(first, torch.full((100,), 0.25))


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_round_trip_of_16_bits_is_exact(tmp_path, name):
    samples = torch.from_numpy(pcm(70000, 2).T.astype(np.float32) / 32768)
    write_audio(tmp_path / "sub" / name, samples, 16000)
    assert torch.equal(read_audio_channels(tmp_path / "sub" / name)[0], samples)


def test_write_clips_and_refuses(tmp_path):
    write_audio(tmp_path / "x.wav", torch.tensor([2.0, -2.0]), 8000)
    assert read_audio(tmp_path / "x.wav")[0].tolist() == [32767 / 32768, -1.0]
    write_audio(tmp_path / "f.wav", torch.tensor([2.0, -2.0]), 8000, subtype="FLOAT")
    assert read_audio(tmp_path / "f.wav")[0].tolist() == [2.0, -2.0]
    with pytest.raises(DataError, match="NaN"):
        write_audio(tmp_path / "n.wav", torch.tensor([float("nan")]), 8000)
    with pytest.raises(ValueError, match="xyz"):
        write_audio(tmp_path / "n.xyz", torch.zeros(3), 8000)
    with pytest.raises(ValueError, match=r"\(1, 1, 3\)"):
        write_audio(tmp_path / "n.wav", torch.zeros(1, 1, 3), 8000)


# What is wrong with files


def fault(path: Path, **span: float) -> str:
    with pytest.raises(DataError) as caught:
        read_audio(path, **span)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    assert "no such audio file" in fault(tmp_path / "missing.wav")
    (tmp_path / "empty.wav").touch()
    assert "empty" in fault(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("this is not audio")
    assert "not audio" in fault(tmp_path / "text.wav")
    assert "cannot be opened" in fault(tmp_path)
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.int16), 8000)
    assert "no samples" in fault(tmp_path / "none.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_truncated_wav(tmp_path, subtype, keep):
    path = tmp_path / "x.wav"
    soundfile.write(path, pcm(8000)[:, 0], 8000, subtype=subtype)
    os.truncate(path, int(path.stat().st_size * keep))
    assert "truncated" in fault(path)
    with pytest.raises(DataError, match="truncated"):
        audio_info(path)


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.95])
def test_truncated_flac(tmp_path, keep):
    path = tmp_path / "x.flac"
    soundfile.write(path, pcm(80000)[:, 0], 8000)
    os.truncate(path, int(path.stat().st_size * keep))
    fault(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = np.zeros(100, np.float32)
    samples[7] = value
    soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
    assert "1 samples are NaN or infinite" in fault(tmp_path / "x.wav")


def test_span_outside_the_file(tmp_path):
    path = tmp_path / "x.wav"
    write_audio(path, torch.zeros(8000), 8000)
    assert "1.000 s" in fault(path, start=0.5, duration=0.6)
    fault(path, start=2.0)
    fault(path, start=-0.5, duration=0.2)
    # A manifest's seconds are rounded: a few milliseconds beyond the end are the end.
    assert len(read_audio(path, duration=1.004)[0]) == 8000


@pytest.mark.parametrize("sizes", [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFFFFF, 0x7FFFFFDB)])
def test_wav_written_to_a_pipe(tmp_path, sizes):
    samples = pcm(500)
    raw = bytearray(wav_bytes(samples, 8000))
    raw[4:8] = struct.pack("<I", sizes[0])
    raw[40:44] = struct.pack("<I", sizes[1])
    (tmp_path / "x.wav").write_bytes(raw)
    got, _ = read_audio(tmp_path / "x.wav")
    assert torch.equal(got, torch.from_numpy(samples[:, 0].astype(np.float32) / 32768))


def test_flac_written_to_a_pipe(tmp_path):
    """Its header has no number of samples (0 stands for unknown)."""
    path = tmp_path / "x.flac"
    samples = pcm(9000)
    soundfile.write(path, samples[:, 0], 8000)
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0  # the 36 bits of STREAMINFO from here on
    raw[22:26] = bytes(4)
    path.write_bytes(raw)
    assert "does not say how long" in fault(path)


@quick
@given(raw=st.binary(max_size=200), keep=st.integers(0, 300), position=st.integers(0, 299))
def test_any_bytes_give_samples_or_a_data_error(tmp_path, raw, keep, position):
    good = bytearray(wav_bytes(pcm(128), 8000))
    good[position : position + len(raw)] = raw
    path = tmp_path / "x.wav"
    path.write_bytes(bytes(good[: max(keep, len(raw))]))
    try:
        waveform, _ = read_audio(path)
    except DataError as error:
        message = str(error)
    else:
        assert waveform.dim() == 1
        assert waveform.isfinite().all()
        return
    assert str(path) in message


# Resampling and inputs of inference


def tone(rate: int, seconds: float, hertz: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("orig", [8000, 22050, 44100, 44101, 48000, 11127])
def test_resampling_keeps_a_tone(orig):
    out = resample(tone(orig, 0.5, 440.0), orig, 16000)
    expected = tone(16000, 0.5, 440.0)
    assert abs(len(out) - len(expected)) <= 1
    torch.testing.assert_close(out[200:7000], expected[200:7000], atol=0.02, rtol=0)


def test_resampling_equals_torchaudio_and_keeps_its_kernel():
    from torchaudio.functional import resample as reference

    from speechkit.data.audio import _resampler

    x = torch.randn(2, 3, 4410)
    before = _resampler.cache_info().hits
    for _ in range(2):
        torch.testing.assert_close(resample(x, 44100, 16000), reference(x, 44100, 16000))
    assert _resampler.cache_info().hits > before
    assert resample(x, 16000, 16000) is x
    with pytest.raises(ValueError, match="0"):
        resample(x, 0, 16000)


def test_as_waveform_converts_everything(tmp_path):
    x = tone(8000, 0.5, 300.0) / 2
    write_audio(tmp_path / "x.wav", torch.stack([x, x]), 8000)
    from_file = as_waveform(tmp_path / "x.wav", None, 16000)
    assert from_file.shape == (8000,)
    shorts = (x * 32768).round().to(torch.int16)
    for source in (x, x.double(), x.numpy(), torch.stack([x, x]), shorts, x[None]):
        torch.testing.assert_close(as_waveform(source, 8000, 16000), from_file, atol=1e-3, rtol=0)
    assert torch.equal(as_waveform(x, None, 16000), x)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch.zeros(100, 2), ValueError, "transpose"),
        (torch.zeros(1, 1, 5), ValueError, "not"),
        (torch.zeros(5, dtype=torch.int32), ValueError, "int32"),
        (torch.tensor([0.0, float("nan")]), DataError, "NaN"),
        (torch.zeros(0), DataError, "no samples"),
    ],
)
def test_as_waveform_refuses(source, error, message):
    with pytest.raises(error, match=message):
        as_waveform(source, 16000, 16000)


@quick
@given(
    num_samples=st.integers(1, 4000),
    block=st.integers(40, 1500),
    overlap=st.integers(0, 39),
    rates=st.sampled_from([(8000, 8000), (8000, 16000), (44100, 16000), (16000, 11025)]),
)
def test_streamed_blocks_are_pieces_of_the_whole(tmp_path, num_samples, block, overlap, rates):
    orig, new = rates
    path = tmp_path / "x.wav"
    write_audio(path, to_mono(torch.rand(1, num_samples) - 0.5), orig)
    whole, _ = read_audio(path, sample_rate=new)
    blocks = stream_audio(
        path, block_seconds=block / new, overlap_seconds=overlap / new, sample_rate=new
    )
    begin = end = 0
    for piece in blocks:
        torch.testing.assert_close(piece, whole[begin : begin + block], atol=1e-5, rtol=0)
        end = begin + len(piece)
        begin += block - overlap
    assert end == len(whole)


def test_stream_refuses(tmp_path):
    with pytest.raises(ValueError, match="overlap"):
        next(stream_audio(tmp_path / "x.wav", block_seconds=1.0, overlap_seconds=1.0))
    with pytest.raises(DataError, match=r"x\.wav"):
        next(stream_audio(tmp_path / "x.wav", block_seconds=1.0))


def test_real_audio_equals_soundfile(real_data):
    files = sorted(real_data.rglob("*.flac"))[:3] + sorted(real_data.rglob("*.wav"))[:5]
    files += sorted(real_data.rglob("*.ogg"))[:2]
    assert files
    for path in files:
        expected, rate = soundfile.read(path, dtype="float32", always_2d=True)
        got, got_rate = read_audio_channels(path)
        assert got_rate == rate
        assert np.array_equal(got.numpy(), expected.T), path
