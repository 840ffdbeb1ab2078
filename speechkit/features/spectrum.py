"""Spectral features of waveforms: STFT, log-mel, MFCC and their deltas.

All compute in float32, inside autocast too, and give for each item of a padded batch what that item
alone gives (see `speechkit.features.framing`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechkit.features.deltas import check_delta_window, deltas
from speechkit.features.framing import Framed, one_of
from speechkit.features.mel import mel_filters
from speechkit.nn.masking import Padded, length_mask


class STFT(Framed):
    """Short-time Fourier transform, as ``torch.stft(..., center=True)`` of each item alone.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz. Kept for those who ask; the transform does not need it.
    n_fft : int
        Samples of a frame, zero-padded from ``win_length``.
    hop_length : int
        Samples from one frame to the next.
    win_length : int, optional
        Samples of the window; ``n_fft`` by default.
    window : str
        ``"hann"``, ``"hamming"`` or ``"ones"``; the first two periodic.
    pad_mode : str
        What lies beyond an item's two ends: ``"reflect"`` (the item mirrored) or ``"constant"``
        (zeros).

    Raises
    ------
    ValueError
        If the settings contradict each other.

    Examples
    --------
    >>> stft = STFT(n_fft=64, hop_length=16)
    >>> spectrum, lengths = stft(torch.randn(2, 160), torch.tensor([160, 80]))
    >>> spectrum.shape, spectrum.dtype, lengths.tolist()
    (torch.Size([2, 11, 33]), torch.complex64, [11, 6])
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        win_length: int | None = None,
        window: str = "hann",
        pad_mode: str = "reflect",
    ) -> None:
        super().__init__(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            win_length=win_length,
            window=window,
            pad_mode=pad_mode,
        )
        self._register_tables()

    @property
    def output_size(self) -> int:
        """Number of frequency bins, ``n_fft // 2 + 1``."""
        return self.n_fft // 2 + 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Padded:
        """Transform a padded batch.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``.
        lengths : Tensor
            Shape ``(B,)``, valid samples.

        Returns
        -------
        Padded
            Complex spectrum ``(B, T', n_fft // 2 + 1)``, zero beyond the lengths, and ``(B,)``
            frames.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            return self._map_spectrum(waveforms, lengths, lambda spectrum: spectrum)


class LogMel(Framed):
    """Logarithm of the energies in mel-spaced bands (Davis & Mermelstein, 1980).

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz.
    n_fft, hop_length, win_length, window, pad_mode
        As in `STFT`.
    num_mels : int
        Number of bands.
    f_min, f_max : float
        Range of the bands in Hz; ``f_max`` is half the sample rate by default.
    mel_scale : str
        ``"htk"`` (2595 log10(1 + f / 700)) or ``"slaney"`` (linear below 1 kHz).
    norm : str, optional
        ``"slaney"`` gives all bands the same area.
    filters : str
        ``"triangular"``: each band reaches to the centres of its neighbours (torchaudio's, HTK's).
        ``"symmetric"``: as wide above its centre as below, in Hz, as in SpeechBrain's models.
    power : float
        Exponent of the magnitude before the bands are summed: 2.0 (power) or 1.0.
    log : str, optional
        ``"natural"``; ``"db"`` (10 log10 of a power, 20 log10 of a magnitude); None for none.
    floor : float
        Energies below it are raised to it before the logarithm.
    top_db : float, optional
        With ``log="db"``: raise all that lies more than this below the item's own maximum.

    Raises
    ------
    ValueError
        If the settings contradict each other.

    Examples
    --------
    >>> log_mel = LogMel(num_mels=80)
    >>> features, lengths = log_mel(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> features.shape, lengths.tolist()
    (torch.Size([2, 101, 80]), [101, 51])
    """

    _filters: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        win_length: int | None = None,
        window: str = "hann",
        pad_mode: str = "reflect",
        num_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        mel_scale: str = "htk",
        norm: str | None = None,
        filters: str = "triangular",
        power: float = 2.0,
        log: str | None = "natural",
        floor: float = 1e-10,
        top_db: float | None = None,
    ) -> None:
        super().__init__(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            win_length=win_length,
            window=window,
            pad_mode=pad_mode,
        )
        self.num_mels = num_mels
        self.f_min = f_min
        self.f_max = f_max
        self.mel_scale = mel_scale
        self.norm = norm
        self.filters = filters
        self.power = power
        self.log = log
        self.floor = floor
        self.top_db = top_db
        self._check_settings()
        self._register_tables()

    def _check_settings(self) -> None:
        one_of("mel_scale", self.mel_scale, ("htk", "slaney"))
        one_of("norm", self.norm, (None, "slaney"))
        one_of("filters", self.filters, ("triangular", "symmetric"))
        one_of("power", self.power, (1.0, 2.0))
        one_of("log", self.log, ("natural", "db", None))
        nyquist = self.sample_rate / 2
        f_max = nyquist if self.f_max is None else self.f_max
        if not 0 <= self.f_min < f_max <= nyquist:
            raise ValueError(
                f"need 0 <= f_min < f_max <= sample_rate / 2, got f_min={self.f_min}, "
                f"f_max={f_max}, sample_rate={self.sample_rate}"
            )
        if self.filters == "symmetric" and (self.mel_scale, self.norm) != ("htk", None):
            raise ValueError('filters="symmetric" needs mel_scale="htk" and norm=None')
        if self.top_db is not None and self.log != "db":
            raise ValueError(f'top_db={self.top_db} needs log="db", got log={self.log!r}')
        if self.floor <= 0:
            raise ValueError(f"floor must be positive, got {self.floor}")

    def _make_tables(self) -> dict[str, Tensor]:
        bins = self.n_fft // 2 + 1
        f_max = self.sample_rate / 2 if self.f_max is None else self.f_max
        bank = mel_filters(
            bins,
            f_min=self.f_min,
            f_max=f_max,
            num_mels=self.num_mels,
            sample_rate=self.sample_rate,
            mel_scale=self.mel_scale,
            norm=self.norm,
            shape=self.filters,
        )
        return {**super()._make_tables(), "_filters": bank}

    @property
    def output_size(self) -> int:
        """Number of features of a frame."""
        return self.num_mels

    def _bands(self, spectrum: Tensor) -> Tensor:
        # Not abs() ** 2 nor a sum over an axis of size 2: both are slower.
        energy = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
        if self.power == 1.0:
            # The gradient of a square root at zero is infinite.
            energy = energy.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        bands = energy @ self._filters
        if self.log is None:
            return bands
        bands = bands.clamp_min(self.floor)
        if self.log == "natural":
            return bands.log()
        return bands.log10() * (10.0 if self.power == 2.0 else 20.0)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Padded:
        """Compute the features of a padded batch.

        Parameters
        ----------
        waveforms : Tensor
            Shape ``(B, T)``, in [-1, 1].
        lengths : Tensor
            Shape ``(B,)``, valid samples.

        Returns
        -------
        Padded
            float32 features ``(B, T', output_size)``, zero beyond the lengths, and ``(B,)`` frames.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            features, counts = self._map_spectrum(waveforms, lengths, self._bands)
            if self.top_db is not None:
                valid = length_mask(counts, features.shape[1]).unsqueeze(2)
                peak = features.masked_fill(~valid, -math.inf).amax(dim=(1, 2), keepdim=True)
                features = features.maximum(peak - self.top_db).masked_fill(~valid, 0.0)
            return Padded(features, counts)


class MFCC(LogMel):
    """Mel-frequency cepstral coefficients (Davis & Mermelstein, 1980), with deltas.

    Parameters
    ----------
    num_ceps : int
        How many coefficients of the orthonormal DCT-II of the log-mel bands to keep.
    deltas : int
        0 for none, 1 for first, 2 for first and second differences, appended to each frame.
    delta_window : int
        Frames that a difference looks at, odd.
    **log_mel
        The other arguments are those of `LogMel`, by name; the defaults differ where cepstra are
        customarily taken of decibels over a range of 80 dB.

    Raises
    ------
    ValueError
        If the settings contradict each other.

    Examples
    --------
    >>> mfcc = MFCC(num_ceps=13, deltas=2)
    >>> mfcc(torch.randn(1, 1600), torch.tensor([1600])).data.shape
    torch.Size([1, 11, 39])
    """

    _dct: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        win_length: int | None = None,
        window: str = "hann",
        pad_mode: str = "reflect",
        num_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        mel_scale: str = "htk",
        norm: str | None = None,
        filters: str = "triangular",
        power: float = 2.0,
        log: str | None = "db",
        floor: float = 1e-10,
        top_db: float | None = 80.0,
        num_ceps: int = 20,
        deltas: int = 2,
        delta_window: int = 5,
    ) -> None:
        if not 0 < num_ceps <= num_mels:
            raise ValueError(f"need 0 < num_ceps <= num_mels, got {num_ceps} and {num_mels}")
        one_of("deltas", deltas, (0, 1, 2))
        check_delta_window(delta_window)
        # Before LogMel's constructor, which makes the tables; nn.Module allows plain attributes.
        self.num_ceps = num_ceps
        self.deltas = deltas
        self.delta_window = delta_window
        super().__init__(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            win_length=win_length,
            window=window,
            pad_mode=pad_mode,
            num_mels=num_mels,
            f_min=f_min,
            f_max=f_max,
            mel_scale=mel_scale,
            norm=norm,
            filters=filters,
            power=power,
            log=log,
            floor=floor,
            top_db=top_db,
        )

    def _make_tables(self) -> dict[str, Tensor]:
        from torchaudio.functional import create_dct

        return {**super()._make_tables(), "_dct": create_dct(self.num_ceps, self.num_mels, "ortho")}

    @property
    def output_size(self) -> int:
        """Number of features of a frame, deltas included."""
        return self.num_ceps * (1 + self.deltas)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Padded:
        """Compute the features of a padded batch; see `LogMel.forward`."""
        with torch.autocast(waveforms.device.type, enabled=False):
            log_mel, counts = super().forward(waveforms, lengths)
            parts = [log_mel @ self._dct]
            for _ in range(self.deltas):
                parts.append(deltas(parts[-1], counts, window=self.delta_window))
            return Padded(torch.cat(parts, dim=-1), counts)
