"""Recordings to ``.skc`` files and back: what the library gives directly, in pieces and damaged."""

from __future__ import annotations

import dataclasses
import io
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "coding"))
from skc_files import record_starts
from test_skc_mutations import Mutation
from tiny_codecs import HOP, RATE, Pipe, recording, tiny_codec, tiny_lm

from speechkit.codec_files.files import (
    DownmixWarning,
    FileCodec,
    SkcAudio,
    decode_file,
    encode_file,
    inspect_file,
)
from speechkit.coding.integer_model import IntegerCodeModel
from speechkit.coding.skc import SkcError, read_skc, weights_id, write_skc
from speechkit.data.audio import read_audio_channels, resample, write_audio
from speechkit.data.errors import DataError
from speechkit.data.wav_stream import WavStream, WavWriterStream
from speechkit.models.codec import Codec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TOP = 2.4  # kbit/s of all four codebooks


def wav(samples: Tensor, rate: int = RATE, *, told: bool = True, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    length = samples.shape[1] if told else None
    writer = WavWriterStream(file, rate, samples.shape[0], length, subtype=subtype)
    writer.write(samples)
    writer.finish()
    return file.getvalue()


def encode(samples: Tensor, codec: FileCodec, kbps: float = TOP, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    encode_file(io.BytesIO(wav(samples, rate)), file, codec, kbps=kbps)
    return file.getvalue()


def decode(data: bytes, codec: FileCodec, *, pipe: bool = False, **options: Any) -> Tensor:
    source = Pipe(data) if pipe else io.BytesIO(data)
    audio = SkcAudio(source, codec, **options)
    parts = [torch.zeros(audio.header.channels, 0), *audio.blocks()]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("kind", ["mono", "mirror", "stereo", "whole"])
def test_files_are_what_the_library_gives(kind: str, coded: bool) -> None:
    model = tiny_codec(kind)
    predictor = IntegerCodeModel.from_float(tiny_lm()) if coded else None
    codec = FileCodec.of(model, predictor)
    assert codec.model_id == weights_id(model), "the id is that before weight norm is folded"
    for length in (23.017, 11.96, 0.9607, 0.0021) if not coded else (3.3,):
        samples = recording(length, model.channels)
        encoded = model.encode(samples[None], kbps=1.2)
        data = encode(samples, codec, kbps=1.2)
        content = read_skc(io.BytesIO(data), predictor)
        assert content.num_samples == samples.shape[1]
        assert content.header.sample_rate, content.header.hop_length == (RATE, HOP)
        np.testing.assert_array_equal(content.codes, encoded.codes[0].numpy())
        if not model.normalize:
            direct = io.BytesIO()
            write_skc(direct, content.header, content.codes, samples.shape[1], predictor)
            assert direct.getvalue() == data
        expected = model.decode(*encoded)[0]
        for pipe in (False, True):
            torch.testing.assert_close(
                decode(data, codec, pipe=pipe), expected, atol=1e-5, rtol=1e-4
            )


def test_any_pieces_give_the_same_bytes(tmp_path: Path) -> None:
    """From a file, a pipe, a pipe of unknown length, in several encodings."""
    codec = FileCodec.of(tiny_codec())
    samples = recording(12.3)
    expected = encode(samples, codec)
    write_audio(tmp_path / "a.flac", samples, RATE)
    written = encode_file(tmp_path / "a.flac", tmp_path / "a.skc", codec, kbps=TOP)
    assert (tmp_path / "a.skc").read_bytes() == expected
    assert written.num_samples == samples.shape[1]
    assert written.num_bytes == len(expected)
    assert written.kbps == pytest.approx(len(expected) * 8 / 12300)
    for told in (True, False):
        for subtype in ("PCM_16", "PCM_24", "FLOAT"):
            out = io.BytesIO()
            source = Pipe(wav(samples, told=told, subtype=subtype), 777)
            encode_file(source, out, codec, kbps=TOP)
            assert out.getvalue() == expected, (told, subtype)


@pytest.mark.parametrize("rate", [1000, 7999, 11025, 16000, 44100, 44101])
def test_rate_and_length_come_back(rate: int) -> None:
    codec = FileCodec.of(tiny_codec())
    for length in (1, 2, 9, 4801, 3 * rate + 17):
        samples = recording(length / rate, rate=rate)
        data = encode(samples, codec, rate=rate)
        content = read_skc(io.BytesIO(data))
        assert (content.header.sample_rate, content.num_samples) == (rate, length)
        there = resample(samples, rate, RATE)[None]
        direct = codec.codec.encode(there)
        np.testing.assert_array_equal(content.codes, direct.codes[0].numpy())
        back = resample(codec.codec.decode(*direct)[0], RATE, rate)[:, :length]
        torch.testing.assert_close(decode(data, codec), back, atol=1e-4, rtol=1e-3)
        out = io.BytesIO()
        done = decode_file(io.BytesIO(data), out, codec)
        assert (done.num_samples, done.sample_rate) == (length, rate)
        info = soundfile.info(io.BytesIO(out.getvalue()))
        assert (info.frames, info.samplerate, info.channels) == (length, rate, 1)


def test_rates_beyond_bounds_are_refused() -> None:
    codec = FileCodec.of(tiny_codec())
    for rate in (999, 768_001):
        with pytest.raises(DataError, match=f"rate of {rate} Hz; rates from 1000 to 768000"):
            encode(torch.zeros(1, 10), codec, rate=rate)


def test_channels() -> None:
    mono, stereo = FileCodec.of(tiny_codec()), FileCodec.of(tiny_codec("stereo"))
    samples = recording(2.5, channels=2)
    with pytest.warns(DownmixWarning, match="its 2 channels are averaged to one: the codec has 1"):
        data = encode(samples, mono)
    assert data == encode_float(samples.mean(dim=0, keepdim=True), mono)
    assert decode(data, mono).shape == (1, 20000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = encode(samples[:1], stereo)
    assert decode(one, stereo).shape == (1, 20000)
    both = samples[:1].expand(2, -1)[None]
    expected = stereo.codec.decode(*stereo.codec.encode(both))[0].mean(dim=0, keepdim=True)
    torch.testing.assert_close(decode(one, stereo), expected, atol=1e-5, rtol=1e-4)
    with pytest.warns(DownmixWarning, match="its 3 channels are averaged to one: the codec has 2"):
        assert decode(encode(recording(0.5, 3), stereo), stereo).shape == (1, 4000)


def encode_float(samples: Tensor, codec: FileCodec) -> bytes:
    file = io.BytesIO()
    encode_file(io.BytesIO(wav(samples, subtype="FLOAT")), file, codec, kbps=TOP)
    return file.getvalue()


@pytest.mark.parametrize("rate", [RATE, 11025])
@pytest.mark.parametrize("kind", ["mono", "stereo", "whole"])
def test_seeking(kind: str, rate: int) -> None:
    codec = FileCodec.of(tiny_codec(kind), IntegerCodeModel.from_float(tiny_lm()))
    channels = codec.codec.channels
    data = encode(recording(21.3, channels, rate), codec, rate=rate)
    whole = decode(data, codec)
    for start, duration in ((0, 0.5), (3.21, 2.0), (9.7, None), (20.0, 5.0), (21.29, None)):
        first = round(start * rate)
        end = None if duration is None else first + round(duration * rate)
        for pipe in (False, True):
            part = decode(data, codec, start=start, duration=duration, pipe=pipe)
            expected = whole[:, first:end]
            assert part.shape == expected.shape, (start, pipe)
            torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-3)
    for pipe in (False, True):
        with pytest.raises(DataError, match=r"has 21.30 s, and ends before 21.50 s|no chunk"):
            decode(data, codec, start=21.5, pipe=pipe)


def test_what_does_not_fit_is_named() -> None:
    model, other = FileCodec.of(tiny_codec()), FileCodec.of(tiny_codec(seed=1))
    first, second = (IntegerCodeModel.from_float(tiny_lm(seed)) for seed in (0, 1))
    samples = recording(1.5)
    plain = encode(samples, model)
    with pytest.raises(SkcError, match=f"{model.model_id.hex()}.*{other.model_id.hex()}"):
        decode(plain, other)
    coded = encode(samples, FileCodec(model.codec, model.model_id, first))
    assert len(coded) != len(plain)
    with pytest.raises(SkcError, match=f"{first.digest.hex()}.* the model given is none"):
        decode(coded, model)
    with pytest.raises(SkcError, match=f"{first.digest.hex()}.*{second.digest.hex()}"):
        decode(coded, FileCodec(model.codec, model.model_id, second))
    with_any = FileCodec(model.codec, model.model_id, second)
    assert torch.equal(decode(plain, with_any), decode(plain, model)), "a plain file needs none"
    with pytest.raises(DataError, match=r"no 5 kbit/s: choose one of 0.6, 1.2, 2.4"):
        encode(samples, model, kbps=5)


def test_a_header_that_lies_about_its_codec() -> None:
    """Absurd numbers with right checksums: nothing is allocated for them."""
    codec = FileCodec.of(tiny_codec())
    header = codec.header(sample_rate=RATE, channels=1, num_codebooks=4, coded=False)
    changes: tuple[dict[str, Any], ...] = (
        {"sample_rate": (1 << 24) - 1, "hop_length": 65535},
        {"sample_rate": 999},
        {"channels": 16},
        {"num_codebooks": 256},
        {"codebook_size": 65536},
        {"hop_length": 1},
        {"side_size": 64},
    )
    for change in changes:
        file = io.BytesIO()
        lying = dataclasses.replace(header, **change)
        file.write(lying.to_bytes())
        with pytest.raises(DataError, match=r"does not fit the codec|can be converted|codebooks"):
            decode(file.getvalue(), codec)


def test_damage_is_an_error_or_silence() -> None:
    codec = FileCodec.of(tiny_codec())
    data = encode(recording(12.5), codec)
    whole = decode(data, codec)
    starts = record_starts(data)
    place = starts[4] + 20
    broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    lost = rf"chunk 4 \(4.00 s to 5.00 s, bytes {starts[4]} to {starts[5]}\): the checksum"
    for pipe in (False, True):
        with pytest.raises(SkcError, match=f"damaged: {lost}.*--conceal"):
            decode(broken, codec, pipe=pipe)
        audio = SkcAudio(Pipe(broken) if pipe else io.BytesIO(broken), codec, conceal=True)
        found = torch.cat(list(audio.blocks()), dim=1)
        assert found.shape == whole.shape
        assert not found[:, 4 * RATE : 5 * RATE].any()
        torch.testing.assert_close(found[:, : 4 * RATE], whole[:, : 4 * RATE])
        # behind the gap, the network has to find its way again
        later = slice(6 * RATE, None)
        torch.testing.assert_close(found[:, later], whole[:, later], atol=1e-4, rtol=1e-3)
        assert [(part.first_chunk, part.start, part.end) for part in audio.damages] == [(4, 4, 5)]
    # what was not asked for may be damaged
    assert torch.equal(decode(broken, codec, start=0, duration=3), whole[:, : 3 * RATE])
    assert decode(broken, codec, start=6).shape == (1, 6.5 * RATE)
    with pytest.raises(SkcError, match="damaged: chunk 4"):
        decode(broken, codec, start=4.5)
    with pytest.raises(SkcError, match=r"chunk 12 .*the last chunk is missing"):
        decode(data[:-3], codec)
    cut = decode(data[: starts[11]], codec, conceal=True)
    torch.testing.assert_close(cut, whole[:, : 11 * RATE])


def test_damage_of_segments_is_silence() -> None:
    model = tiny_codec("stereo")
    codec = FileCodec.of(model)
    data = encode(recording(25.0, 2), codec)
    whole = decode(data, codec)
    stride, size = model.segment_stride, model.segment_length
    starts = record_starts(data)
    for end in range(20, 26):  # cut: the length is that of the frames that are left
        audio = SkcAudio(io.BytesIO(data[: starts[end]]), codec, conceal=True)
        found = torch.cat(list(audio.blocks()), dim=1)
        assert found.shape[1] == audio.num_samples
        torch.testing.assert_close(found[:, : (end - 1) * stride], whole[:, : (end - 1) * stride])
    for chunk in (0, 1, 11, 12, 25):
        starts = record_starts(data)
        place = starts[chunk] + 10
        broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(SkcError, match=rf"chunk {chunk} \({chunk * 0.96:.2f} s"):
            decode(broken, codec)
        found = decode(broken, codec, conceal=True)
        gap = slice(chunk * stride, chunk * stride + (size or 0))
        assert not found[:, gap].any()
        torch.testing.assert_close(found[:, : gap.start], whole[:, : gap.start])
        torch.testing.assert_close(found[:, gap.stop : 200000], whole[:, gap.stop :])


def test_info() -> None:
    codec = FileCodec.of(tiny_codec())
    data = encode(recording(12.5, rate=11025), codec, rate=11025, kbps=1.2)
    info = inspect_file(io.BytesIO(data))
    assert (info.header.sample_rate, info.num_samples, info.num_chunks) == (11025, 137812, 13)
    assert info.header.model_id == codec.model_id
    assert info.duration == pytest.approx(12.5, abs=1e-4)
    assert info.nominal_kbps == pytest.approx(1.2, rel=0.01)
    assert info.written_kbps == pytest.approx(len(data) * 8 / 12500, rel=1e-4)
    assert info.damages == []
    starts = record_starts(data)
    broken = inspect_file(Pipe(data[: starts[7]] + data[starts[9] :]))
    assert [(d.first_chunk, d.num_chunks) for d in broken.damages] == [(7, 2)]
    header = codec.header(sample_rate=11025, channels=1, num_codebooks=2, coded=False)
    exact = 7 * header.chunk_frames / model_frames(codec.codec)
    assert broken.damages[0].start == pytest.approx(exact, abs=0.005)
    with pytest.raises(SkcError, match=r"standard input: not an .skc file"):
        inspect_file(io.BytesIO(b"RIFF and more"))


def model_frames(codec: Codec) -> float:
    return codec.frame_rate


def test_nothing_is_half_written(tmp_path: Path) -> None:
    codec = FileCodec.of(tiny_codec())
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.skc").write_text("an older one")
    data = wav(recording(30.0))
    with pytest.raises(DataError, match="standard input: cut off after"):
        encode_file(io.BytesIO(data[:-1000]), out / "a.skc", codec, kbps=TOP)
    with pytest.raises(DataError, match="holds no samples"):
        encode_file(io.BytesIO(wav(torch.zeros(1, 0))), out / "b.skc", codec, kbps=TOP)
    skc = encode(recording(3.0), codec)
    with pytest.raises(SkcError):
        decode_file(Pipe(skc[:-9]), out / "b.wav", codec)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_file(io.BytesIO(data), out / "a.skc", codec, kbps=TOP, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        decode_file(io.BytesIO(skc), out / "b.wav", codec, progress=stop)
    assert [path.name for path in out.iterdir()] == ["a.skc"]
    assert (out / "a.skc").read_text() == "an older one"
    (tmp_path / "same.wav").write_bytes(data)
    (tmp_path / "link.skc").symlink_to("same.wav")
    with pytest.raises(DataError, match="is what is to be read"):
        encode_file(tmp_path / "same.wav", tmp_path / "link.skc", codec, kbps=TOP)
    assert (tmp_path / "same.wav").read_bytes() == data


def test_a_file_from_a_pipe_has_its_length(tmp_path: Path) -> None:
    codec = FileCodec.of(tiny_codec())
    data = encode(recording(3.0), codec)
    seen: list[float] = []
    for subtype in ("PCM_16", "PCM_24", "FLOAT"):
        decode_file(Pipe(data), tmp_path / "a.wav", codec, subtype=subtype, progress=seen.append)
        assert soundfile.info(tmp_path / "a.wav").frames == 24000
        assert soundfile.info(tmp_path / "a.wav").subtype == subtype
        found = read_audio_channels(tmp_path / "a.wav")[0]
        torch.testing.assert_close(found, decode(data, codec), atol=2e-5, rtol=0)
    assert sum(seen) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no WAV \\(empty\\)"),
        (b"fLaC and so on and on", "begins with b'fLaC'"),
        (b"RIFF\0\0\0\0WAVE", "ends before its samples"),
        (b"RIFF\0\0\0\0WAVEdata\x10\0\0\0" + bytes(16), "does not say its format"),
        (b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0" + bytes(4), "format is cut off"),
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff" + bytes(99), "ends before its samples"),
    ],
)
def test_bad_streams(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WavStream(io.BytesIO(data))


def test_streams_of_every_encoding() -> None:
    samples = recording(0.1, 3)
    for subtype, bits in (("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("PCM_32", 32),
                          ("FLOAT", 24), ("DOUBLE", 24)):  # fmt: skip
        for container in ("WAV", "WAVEX", "RF64"):
            file = io.BytesIO()
            soundfile.write(file, samples.T.numpy(), RATE, format=container, subtype=subtype)
            stream = WavStream(Pipe(file.getvalue(), 99))
            assert (stream.sample_rate, stream.num_channels, stream.num_samples) == (RATE, 3, 800)
            found = torch.cat(list(stream.blocks()), dim=1)
            torch.testing.assert_close(found, samples, atol=1.01 * 2.0 ** (1 - bits), rtol=0)
    bad = io.BytesIO()
    soundfile.write(bad, samples.T.numpy(), RATE, format="WAV", subtype="ULAW")
    with pytest.raises(DataError, match="encoding 7 with 8 bits, 3 channels and 8000 Hz"):
        WavStream(io.BytesIO(bad.getvalue()))
    fields = struct.pack("<HHIIHH", 1, 0, 0, 0, 0, 16)
    absurd = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + fields + b"data\xff\xff\xff\xff"
    with pytest.raises(DataError, match="0 channels and 0 Hz"):
        WavStream(io.BytesIO(absurd))
    nan = wav(torch.full((1, 9), float("nan")), subtype="FLOAT")
    with pytest.raises(DataError, match="9 samples are NaN"):
        list(WavStream(io.BytesIO(nan)).blocks())


def test_more_than_four_gigabytes_are_announced() -> None:
    """Only the header is made: it is an RF64 with the right number."""
    file = io.BytesIO()
    WavWriterStream(file, RATE, 2, 3 * 2**30, subtype="PCM_16")
    stream = WavStream(io.BytesIO(file.getvalue()))
    assert stream.num_samples == 3 * 2**30
    assert file.getvalue()[:4] == b"RF64"


def test_seeded_mutations() -> None:
    """1,000 damaged files: only declared errors, all damage found, the other chunks decoded."""
    predictor = IntegerCodeModel.from_float(tiny_lm())
    # remembers little, so that what follows a gap is soon as it was
    model = tiny_codec(lstm_layers=0, rate=1000)
    results: list[str] = []
    for codec, count in ((FileCodec.of(model), 700), (FileCodec.of(model, predictor), 1000)):
        data = encode(recording(12.5, rate=1000), codec, kbps=0.15, rate=1000)
        whole, starts = decode(data, codec), record_starts(data)
        assert len(starts) == 15
        seed = 0
        while len(results) < count:
            mutation = Mutation(data, starts, seed)
            if mutation.result != data:
                results.append(_mutated(mutation, whole, codec, seed))
            seed += 1
    assert results.count("concealed") > 600


def _mutated(mutation: Mutation, whole: Tensor, codec: FileCodec, seed: int) -> str:
    where = f"seed {seed}, {mutation.kind}"
    with pytest.raises(DataError):
        decode(mutation.result, codec, pipe=bool(seed % 2))
    source = Pipe(mutation.result) if seed % 3 else io.BytesIO(mutation.result)
    try:
        audio = SkcAudio(source, codec, conceal=True)
        found = torch.cat([torch.zeros(1, 0), *audio.blocks()], dim=1)
    except DataError:
        assert mutation.header_hit, where
        return "refused"
    assert audio.damages, where
    assert audio.num_samples in (None, found.shape[1]), where
    lost = {i for d in audio.damages for i in range(d.first_chunk, d.first_chunk + d.num_chunks)}
    assert not lost & set(mutation.intact), where
    chunk_size, settle = 12 * HOP, 9 * HOP
    for chunk in range(14):
        first, end = chunk * chunk_size, min((chunk + 1) * chunk_size, whole.shape[1])
        if chunk in lost:
            assert not found[:, first:end].any(), where
        elif chunk in mutation.intact or end <= found.shape[1]:
            part = slice(first + settle if chunk - 1 in lost else first, end)
            torch.testing.assert_close(
                found[:, part], whole[:, part], atol=1e-4, rtol=1e-3, msg=where
            )
    return "concealed"
