"""Recordings into codes: made once, made anew when something changed, equal to the codec's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import speechkit
from speechkit.data.audio import read_audio, write_audio
from speechkit.data.code_files import CodeLayout, read_codes
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance, read_manifest, write_manifest
from speechkit.datasets import codec_codes
from speechkit.models.codec import Codec
from speechkit.nn.quantize import ResidualVectorQuantizer
from speechkit.nn.seanet import SEANetDecoder, SEANetEncoder


def save_codec(folder: Path, *, seed: int = 0, channels: int = 1) -> Path:
    """Save an untrained codec of 50 frames a second at 16 kHz, with three codebooks of 16."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_filters": 2, "latent_size": 6, "lstm_layers": 1, "channels": channels,
    }  # fmt: skip
    codec = Codec(
        sample_rate=16000,
        channels=channels,
        encoder=SEANetEncoder(strides=(2, 4, 5, 8), **sizes),
        quantizer=ResidualVectorQuantizer(
            latent_size=6, codebook_size=16, num_codebooks=3, kmeans_iterations=0
        ),
        decoder=SEANetDecoder(strides=(8, 5, 4, 2), **sizes),
    )
    speechkit.save(codec, folder)
    return folder


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Return a folder with train.jsonl and test.jsonl: noise at two rates, the last in stereo."""
    folder = tmp_path / "manifests"
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        rows = []
        for number, (rate, channels) in enumerate([(16000, 1), (8000, 1), (16000, 2)]):
            path = folder / f"{split}{number}.wav"
            noise = 0.3 * torch.randn(channels, rate + 1000 * number, generator=generator)
            write_audio(path, noise.clamp(-1, 1), rate)
            seconds = 1.0 + 1000 * number / rate
            rows.append(Utterance(path.stem, str(path), seconds - 0.25, rate, start=0.25))
        write_manifest(folder / f"{split}.jsonl", rows)
    return folder


def splits(manifests: Path) -> dict[str, Path]:
    return {name: manifests / f"{name}.jsonl" for name in ("train", "test")}


def test_preparation_is_done_once(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    encode: Callable[..., Any] = codec_codes._encode_all

    def counting(codec: Codec, layout: CodeLayout, manifest: Path) -> Any:
        calls.append(manifest.stem)
        return encode(codec, layout, manifest)

    monkeypatch.setattr(codec_codes, "_encode_all", counting)
    folder, out = save_codec(tmp_path / "codec"), tmp_path / "codes"

    def prepare() -> list[str]:
        calls.clear()
        places = codec_codes.prepare(codec=folder, manifests=splits(manifests), out=out)
        assert places == {"train": out / "train.json", "test": out / "test.json"}
        return list(calls)

    assert prepare() == ["train", "test"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert prepare() == []
    save_codec(folder)  # written again, with the same weights
    assert prepare() == []
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    rows = (manifests / "test.jsonl").read_text().splitlines()
    (manifests / "test.jsonl").write_text("\n".join(rows[:2]))
    assert prepare() == ["test"]
    assert len(read_codes(out / "test.json").utterances) == 2
    (out / "train.npy").write_bytes(before["train.npy"][:-2])
    assert prepare() == ["train"]
    assert (out / "train.npy").read_bytes() == before["train.npy"]
    save_codec(folder, seed=1)
    assert prepare() == ["train", "test"]
    assert (out / "train.npy").read_bytes() != before["train.npy"]


@pytest.mark.parametrize("channels", [1, 2])
def test_prepared_codes_are_the_codecs(manifests: Path, tmp_path: Path, channels: int) -> None:
    folder = save_codec(tmp_path / "codec", channels=channels)
    places = codec_codes.prepare(
        codec=folder, manifests={"test": manifests / "test.jsonl"}, out=tmp_path, device="cpu"
    )
    file = read_codes(places["test"])
    codec = speechkit.load(folder)
    assert isinstance(codec, Codec)
    rows = read_manifest(manifests / "test.jsonl")
    assert [utterance.id for utterance in file.utterances] == [row.id for row in rows]
    for row, utterance in zip(rows, file.utterances):
        mono = read_audio(row.audio, start=row.start, duration=row.duration, sample_rate=16000)[0]
        waveform = mono.expand(1, channels, -1)
        if row.id == "test2" and channels == 2:
            import soundfile

            samples = soundfile.read(row.audio, dtype="float32")[0][4000:]
            waveform = torch.from_numpy(samples.T)[None]
        codes = codec.encode(waveform).codes[0].numpy()
        found = file.frames[utterance.start : utterance.start + utterance.num_frames].T
        assert found.shape == codes.shape
        # Folded weights are others in their last bits.
        assert (found == codes).mean() > 0.99


def test_what_cannot_be_prepared(manifests: Path, tmp_path: Path) -> None:
    speechkit.save(torch.nn.PReLU(), tmp_path / "other")
    with pytest.raises(DataError, match="holds a PReLU; give the folder of a codec"):
        codec_codes.prepare(codec=tmp_path / "other", manifests={}, out=tmp_path)
    text = (manifests / "test.jsonl").read_text()
    (manifests / "test.jsonl").write_text(text.replace(".wav", ".nothing"))
    out = tmp_path / "codes"
    with pytest.raises(DataError, match="3 problems"):
        codec_codes.prepare(
            codec=save_codec(tmp_path / "codec"), manifests=splits(manifests), out=out
        )
    assert sorted(path.name for path in out.glob("*.*")) == [".train.codes", "train.json",
                                                             "train.npy"]  # fmt: skip
