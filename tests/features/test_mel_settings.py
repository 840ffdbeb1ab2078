"""When two kinds of mels are the same, and what a difference says."""

from __future__ import annotations

import inspect

import pytest

from speechkit.features.mel_settings import check_same_mel, mel_hash, mel_settings
from speechkit.features.spectrum import MFCC, LogMel

OTHER = {
    "sample_rate": 22050, "n_fft": 512, "hop_length": 100, "win_length": 300, "window": "hamming",
    "pad_mode": "constant", "num_mels": 40, "f_min": 20.0, "f_max": 7000.0, "mel_scale": "slaney",
    "norm": "slaney", "filters": "symmetric", "power": 1.0, "log": "db", "floor": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_each_setting_changes_the_hash(name: str) -> None:
    base, other = LogMel(), LogMel(**{name: OTHER[name]})  # type: ignore[arg-type]
    assert mel_hash(base) != mel_hash(other)
    with pytest.raises(ValueError, match=f"differ in .*{name}: "):
        check_same_mel(base, other)


def test_every_setting_is_counted() -> None:
    names = set(inspect.signature(LogMel.__init__).parameters) - {"self"}
    assert set(mel_settings(LogMel())) == names | {"kind"}
    assert names == {*OTHER, "top_db"}
    assert mel_hash(LogMel(log="db")) != mel_hash(LogMel(log="db", top_db=80.0))


def test_what_means_the_same_is_the_same() -> None:
    said = LogMel(win_length=400, f_max=8000, f_min=0, floor=1e-10)
    assert mel_hash(said) == mel_hash(LogMel())
    check_same_mel(said, LogMel())


def test_cepstra_are_no_mels() -> None:
    with pytest.raises(ValueError, match="kind: LogMel and MFCC"):
        check_same_mel(LogMel(), MFCC())


def test_the_hash_stays() -> None:
    # It is in model folders: another value would refuse those that exist.
    assert mel_hash(LogMel()) == "e4c4827d6bc6e168"
