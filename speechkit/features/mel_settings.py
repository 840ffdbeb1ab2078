"""Whether two mel spectra mean the same: what they were made with, its hash, and the differences.

An acoustic model and a vocoder work together only if both were trained on mels of one kind. Each
keeps its `speechkit.features.spectrum.LogMel`; these functions compare two of them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

from speechkit.features.spectrum import LogMel


def mel_settings(log_mel: LogMel) -> dict[str, Any]:
    """Collect all settings that change the values of a mel spectrum.

    What is left to a default that follows from other settings is filled in, so that
    ``f_max=None`` and half the sample rate are the same.

    Parameters
    ----------
    log_mel : LogMel
        Or a class derived from it, whose own settings count too.

    Returns
    -------
    dict
        From a setting's name to its value, of the constructor's order.

    Examples
    --------
    >>> settings = mel_settings(LogMel(sample_rate=16000, n_fft=400))
    >>> settings["win_length"], settings["f_max"]
    (400, 8000.0)
    """
    names = list(inspect.signature(type(log_mel).__init__).parameters)[1:]
    settings = {name: getattr(log_mel, name) for name in names}
    if settings["win_length"] is None:
        settings["win_length"] = log_mel.n_fft
    if settings["f_max"] is None:
        settings["f_max"] = log_mel.sample_rate / 2
    defaults = inspect.signature(LogMel.__init__).parameters
    for name, value in settings.items():
        # 8000 and 8000.0 make the same mels; YAML gives either.
        like_float = isinstance(getattr(defaults.get(name), "default", None), float)
        if (like_float or name == "f_max") and isinstance(value, int):
            settings[name] = float(value)
    return {"kind": type(log_mel).__name__, **settings}


def mel_hash(log_mel: LogMel) -> str:
    """Hash the settings of `mel_settings`: equal for mels that mean the same.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> mel_hash(LogMel()) == mel_hash(LogMel(f_max=8000)), mel_hash(LogMel()) == mel_hash(
    ...     LogMel(f_max=7600.0))
    (True, False)
    """
    text = json.dumps(mel_settings(log_mel), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mel_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """List the settings in which two results of `mel_settings` differ.

    Examples
    --------
    >>> mel_differences(mel_settings(LogMel()), mel_settings(LogMel(num_mels=40)))
    ['num_mels: 80 and 40']
    """
    names = [*ours, *(name for name in theirs if name not in ours)]
    missing = "nothing"
    return [
        f"{name}: {ours.get(name, missing)} and {theirs.get(name, missing)}"
        for name in names
        if ours.get(name, missing) != theirs.get(name, missing)
    ]


def check_same_mel(ours: LogMel, theirs: LogMel) -> None:
    """Refuse two kinds of mels where one is needed.

    Parameters
    ----------
    ours, theirs : LogMel
        Such as those of an acoustic model and of a vocoder.

    Raises
    ------
    ValueError
        If they differ; the message has each setting that does.

    Examples
    --------
    >>> check_same_mel(LogMel(), LogMel(win_length=400))
    >>> check_same_mel(LogMel(), LogMel(hop_length=200))
    Traceback (most recent call last):
    ValueError: these mel spectra differ in hop_length: 160 and 200; use models of one kind of mel
    """
    differences = mel_differences(mel_settings(ours), mel_settings(theirs))
    if differences:
        raise ValueError(
            f"these mel spectra differ in {'; '.join(differences)}; use models of one kind of mel"
        )
