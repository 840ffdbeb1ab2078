"""Losses of neural codecs between waveforms ``(B, C, T)``: L1, and mel spectra at many scales.

The quantizer gives its commitment loss itself; what discriminators add is in
`speechkit.losses.adversarial`, and how all are weighed in `speechkit.losses.balancer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechkit.features.spectrum import LogMel
from speechkit.nn.masking import length_mask

_LEAST_PEAK = 0.5
"""Of a band's peak, at the bin of the spectrum nearest to it."""


def waveform_l1(estimate: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Average the absolute difference of two waveforms over their valid samples and channels.

    Parameters
    ----------
    estimate, target : Tensor
        Shape ``(B, C, T)``.
    lengths : Tensor
        Shape ``(B,)``, valid samples. What lies beyond (NaN too) changes nothing.

    Returns
    -------
    Tensor
        Shape ``(B,)``, float32; 0 for an empty item.

    Raises
    ------
    ValueError
        Where shapes disagree.

    Examples
    --------
    >>> estimate = torch.tensor([[[1.0, 1.0, 9.0]]])
    >>> waveform_l1(estimate, torch.zeros(1, 1, 3), torch.tensor([2])).tolist()
    [1.0]
    """
    _check(estimate, target, lengths)
    beyond = ~length_mask(lengths, estimate.shape[2]).unsqueeze(1)
    # Masked before the difference, so that the gradient of what lies beyond is zero, not NaN.
    ours, theirs = (x.float().masked_fill(beyond, 0.0) for x in (estimate, target))
    return (ours - theirs).abs().sum((1, 2)) / (lengths * estimate.shape[1]).clamp(min=1)


def most_mels(n_fft: int, *, sample_rate: int, most: int = 64) -> int:
    """Count the mel bands that a spectrum can tell apart: the most that each have a bin near.

    Near is where a triangular band, of the HTK scale, has at least half of its peak.

    Parameters
    ----------
    n_fft : int
        Samples of a frame.
    sample_rate : int
        In Hz.
    most : int
        Bands to have at most.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> [most_mels(2**i, sample_rate=24000) for i in range(5, 12)]
    [5, 9, 16, 29, 54, 64, 64]
    """
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    width = sample_rate / n_fft
    for count in range(most, 1, -1):
        mels = (top * i / (count + 1) for i in range(count + 2))
        edges = [700.0 * (10.0 ** (mel / 2595.0) - 1.0) for mel in mels]
        if all(_peak(*band, width) >= _LEAST_PEAK for band in zip(edges, edges[1:], edges[2:])):
            return count
    return 1


def _peak(low: float, centre: float, high: float, width: float) -> float:
    """Give the largest weight that a triangular band has at a multiple of ``width``."""
    below = math.floor(centre / width) * width
    return max((below - low) / (centre - low), (high - below - width) / (high - centre))


class MultiScaleMelLoss(nn.Module):
    """Distance of two waveforms in mel spectra at several windows.

    For each window, with mel spectra ``S`` of a normalised STFT with a hop of a quarter window,
    ``mean |S(x) - S(y)| + alpha * mean (log10 S(x) - log10 S(y))^2`` over bands and valid frames;
    then the mean over windows divided by the mean of ``1 + alpha``. Channels are compared apart.

    EnCodec's paper takes 64 bands at all windows and both norms of the linear spectra; as its
    authors' later code, the second is of logarithms and squared. 64 bands at a window of 32 samples
    would mean 36 filters without a single bin at 24 kHz (zeros that dilute the mean, and
    with them the weight of the window), so each window has at most as many bands as it can tell
    apart: see `most_mels`.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in Hz.
    windows : sequence of int
        Samples, each divisible by 4.
    num_mels : int
        Bands at most.
    alphas : sequence of float, optional
        Weight of the second term for each window; 1 for all by default, as in the paper.
        Gritsenko et al. (2020) take ``sqrt(window / 2)``.
    power : float
        Of the magnitude in the spectra: 1.0, or 2.0 as in the authors' later code, where loud
        partials decide.
    floor : float
        Added before the logarithm.

    Raises
    ------
    ValueError
        Where a setting is out of range, or shapes disagree.

    References
    ----------
    Defossez, Copet, Synnaeve and Adi (2022), "High fidelity neural audio compression", equation 2;
    Gritsenko et al. (2020), "A spectral energy distance for parallel speech synthesis".

    Examples
    --------
    >>> loss = MultiScaleMelLoss(sample_rate=24000)
    >>> target, lengths = torch.randn(2, 1, 4800), torch.tensor([4800, 3000])
    >>> loss(target, target, lengths).tolist()
    [0.0, 0.0]
    >>> near, far = (loss(gain * target, target, lengths) for gain in (0.9, 0.5))
    >>> bool((near < far).all()), near.shape
    (True, torch.Size([2]))
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        num_mels: int = 64,
        alphas: Sequence[float] | None = None,
        power: float = 1.0,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if not windows or any(window < 4 or window % 4 for window in windows):
            raise ValueError(f"windows must be multiples of 4, at least one, got {list(windows)}")
        if alphas is not None and (len(alphas) != len(windows) or min(alphas) < 0):
            raise ValueError(
                f"alphas {list(alphas)} must be one number of at least 0 for each of the windows "
                f"{list(windows)}"
            )
        if floor <= 0 or num_mels < 1:
            raise ValueError(f"need floor > 0 and num_mels > 0, got {floor} and {num_mels}")
        self.sample_rate = sample_rate
        self.windows = windows
        self.num_mels = num_mels
        self.alphas = alphas
        self.power = power
        self.floor = floor
        self.spectra = nn.ModuleList(
            LogMel(
                sample_rate=sample_rate,
                n_fft=window,
                hop_length=window // 4,
                num_mels=most_mels(window, sample_rate=sample_rate, most=num_mels),
                power=power,
                log=None,
            )
            for window in windows
        )

    def forward(self, estimate: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Compare ``(B, C, T)`` with ``(B, C, T)`` over the valid samples ``(B,)``: ``(B,)``."""
        _check(estimate, target, lengths)
        batch, channels, _ = estimate.shape
        each = lengths.repeat_interleave(channels)
        ours, theirs = estimate.flatten(0, 1), target.detach().flatten(0, 1)
        alphas = self.alphas or [1.0] * len(self.windows)
        terms = [
            self._distance(spectrum, ours, theirs, each, alpha)
            for spectrum, alpha in zip(self.spectra, alphas)
        ]
        total = torch.stack(terms).sum(0) / sum(1.0 + alpha for alpha in alphas)
        return total.view(batch, channels).mean(1)

    def _distance(
        self, spectrum: nn.Module, ours: Tensor, theirs: Tensor, lengths: Tensor, alpha: float
    ) -> Tensor:
        assert isinstance(spectrum, LogMel)
        scale = (3.0 / 8.0 * spectrum.n_fft) ** (-self.power / 2)  # a Hann window's squares' sum
        with torch.autocast(ours.device.type, enabled=False):
            y, frames = spectrum(ours, lengths)
            x = spectrum(theirs, lengths).data * scale
            y = y * scale
            values = (y - x).abs().sum((1, 2))
            if alpha:
                logs = (y + self.floor).log10() - (x + self.floor).log10()
                values = values + alpha * logs.square().sum((1, 2))
            return values / (frames * x.shape[2])


def _check(estimate: Tensor, target: Tensor, lengths: Tensor) -> None:
    if estimate.dim() != 3 or estimate.shape != target.shape:
        raise ValueError(
            "need an estimate and a target of one shape (B, C, T), got "
            f"{tuple(estimate.shape)} and {tuple(target.shape)}"
        )
    if lengths.shape != estimate.shape[:1]:
        raise ValueError(
            f"need lengths (B,) for B={estimate.shape[0]}, got shape {tuple(lengths.shape)}"
        )
