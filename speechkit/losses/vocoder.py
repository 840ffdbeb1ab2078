"""Losses of vocoders between waveforms ``(B, C, T)``, and losses added with plain weights.

What discriminators add is in `speechkit.losses.adversarial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.features.spectrum import STFT, LogMel
from speechkit.losses.codec import waveform_l1
from speechkit.nn.masking import length_mask
from speechkit.nn.source_filter import PredictedPitch

__all__ = ["MelL1Loss", "MultiResolutionSTFTLoss", "WeightedSum", "pitch_loss", "waveform_l1"]


class WeightedSum:
    """Add losses with plain weights, as HiFi-GAN does.

    It takes the place of `speechkit.losses.balancer.Balancer`, which makes weights shares of the
    gradient instead, and has the same face.

    Parameters
    ----------
    weights : mapping of str to float
        Factor of each loss, by name.

    Raises
    ------
    ValueError
        Where a weight is out of range, or a loss has none.

    Examples
    --------
    >>> output = torch.tensor([[1.0, -2.0]], requires_grad=True)
    >>> losses = {"mel": output.abs().sum(1), "l2": output.square().sum(1)}
    >>> WeightedSum(weights={"mel": 45.0, "l2": 2.0}).loss(losses, output).tolist()
    [145.0]
    """

    def __init__(self, *, weights: Mapping[str, float]) -> None:
        bad = {n: w for n, w in weights.items() if not (math.isfinite(w) and w >= 0)}
        if bad or not any(weights.values()):
            raise ValueError(
                f"weights must be numbers of at least 0, one of them above, got {dict(weights)}"
            )
        self.weights = dict(weights)

    def loss(
        self, losses: Mapping[str, Tensor], output: Tensor, *, loss_scale: float = 1.0
    ) -> Tensor:
        """Give one loss of each utterance: the weighted sum.

        Parameters
        ----------
        losses : mapping of str to Tensor
            Each ``(B,)``. A name of ``weights`` may be missing.
        output : Tensor
            What the losses are of; it is not needed here.
        loss_scale : float
            Nor is this: whoever goes backward scales the sum.

        Returns
        -------
        Tensor
            Shape ``(B,)``, float32.
        """
        unknown = sorted(set(losses) - set(self.weights))
        if unknown or not losses:
            raise ValueError(
                f"losses {unknown or 'none'} given, but there are weights for "
                f"{', '.join(self.weights)}"
            )
        return torch.stack([self.weights[name] * x.float() for name, x in losses.items()]).sum(0)

    def state_dict(self) -> dict[str, Any]:
        """Give nothing: plain weights have no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing up."""


class MelL1Loss(nn.Module):
    """Mean absolute difference of two log-mel spectra (Kong et al. 2020, equation 3).

    Parameters
    ----------
    log_mel : LogMel
        Makes the spectra. HiFi-GAN's loss has bands up to half the sample rate, where its input
        may end below.

    Raises
    ------
    ValueError
        Where shapes disagree.

    Examples
    --------
    >>> loss = MelL1Loss(log_mel=LogMel(num_mels=40))
    >>> target, lengths = torch.randn(2, 1, 4800), torch.tensor([4800, 3000])
    >>> loss(target.exp(), target.exp(), lengths).tolist()
    [0.0, 0.0]
    """

    def __init__(self, *, log_mel: LogMel) -> None:
        super().__init__()
        self.log_mel = log_mel

    def forward(self, estimate: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Compare ``(B, C, T)`` with ``(B, C, T)`` over the valid samples ``(B,)``: ``(B,)``."""
        ours, theirs, each = _as_items(estimate, target, lengths)
        y, frames = self.log_mel(ours, each)
        with torch.no_grad():
            x = self.log_mel(theirs, each).data
        values = (y - x).abs().sum((1, 2)) / (frames * x.shape[2]).clamp(min=1)
        return values.view(estimate.shape[:2]).mean(1)


class MultiResolutionSTFTLoss(nn.Module):
    """Distance of two magnitude spectra at several resolutions (Yamamoto et al. 2020).

    At each, the spectral convergence ``|X - Y| / |X|`` (Frobenius norms of an item's valid frames)
    plus the mean of ``|log X - log Y|``; then the mean over resolutions ("Parallel WaveGAN",
    equations 4 to 6). It is a loss of training and a measure of copy synthesis.

    Parameters
    ----------
    resolutions : sequence of (int, int, int)
        FFT size, hop and window of each, in samples.
    floor : float
        Magnitudes below it are raised to it.

    Raises
    ------
    ValueError
        Where there is no resolution, or shapes disagree.

    Examples
    --------
    >>> loss = MultiResolutionSTFTLoss()
    >>> target, lengths = torch.randn(2, 1, 4800), torch.tensor([4800, 3000])
    >>> loss(target, target, lengths).tolist()
    [0.0, 0.0]
    >>> bool((loss(0.9 * target, target, lengths) < loss(0.5 * target, target, lengths)).all())
    True
    """

    def __init__(
        self,
        *,
        resolutions: Sequence[tuple[int, int, int]] = (
            (1024, 120, 600),
            (2048, 240, 1200),
            (512, 50, 240),
        ),
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        if not resolutions or floor <= 0:
            raise ValueError(
                f"need at least one resolution and a floor above 0, got {list(resolutions)} and "
                f"{floor}"
            )
        self.resolutions = resolutions
        self.floor = floor
        self.spectra = nn.ModuleList(
            STFT(n_fft=n_fft, hop_length=hop, win_length=window)
            for n_fft, hop, window in resolutions
        )

    def forward(self, estimate: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Compare ``(B, C, T)`` with ``(B, C, T)`` over the valid samples ``(B,)``: ``(B,)``."""
        ours, theirs, each = _as_items(estimate, target, lengths)
        terms = [self._distance(spectrum, ours, theirs, each) for spectrum in self.spectra]
        return torch.stack(terms).mean(0).view(estimate.shape[:2]).mean(1)

    def _distance(
        self, spectrum: nn.Module, ours: Tensor, theirs: Tensor, lengths: Tensor
    ) -> Tensor:
        y, frames = self._magnitudes(spectrum, ours, lengths)
        with torch.no_grad():
            x, _ = self._magnitudes(spectrum, theirs, lengths)
        valid = length_mask(frames, x.shape[1]).unsqueeze(2)
        size = (x.square() * valid).sum((1, 2)).clamp_min(1e-20).sqrt()
        # The gradient of a root at zero is infinite.
        apart = ((x - y).square() * valid).sum((1, 2)).clamp_min(1e-20).sqrt()
        logs = ((x.log() - y.log()).abs() * valid).sum((1, 2))
        convergence = torch.where(apart > 1e-10, apart / size, torch.zeros_like(apart))
        return convergence + logs / (frames * x.shape[2]).clamp(min=1)

    def _magnitudes(
        self, spectrum: nn.Module, waveforms: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        data, frames = spectrum(waveforms, lengths)
        energy = torch.addcmul(data.real.square(), data.imag, data.imag)
        return energy.clamp_min(self.floor**2).sqrt(), frames


def _as_items(estimate: Tensor, target: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make each channel an item ``(B * C, T)``, zero beyond its end."""
    if estimate.dim() != 3 or estimate.shape != target.shape:
        raise ValueError(
            "need an estimate and a target of one shape (B, C, T), got "
            f"{tuple(estimate.shape)} and {tuple(target.shape)}"
        )
    if lengths.shape != estimate.shape[:1]:
        raise ValueError(
            f"need lengths (B,) for B={estimate.shape[0]}, got shape {tuple(lengths.shape)}"
        )
    each = lengths.repeat_interleave(estimate.shape[1])
    beyond = ~length_mask(each, estimate.shape[2])
    ours, theirs = (x.flatten(0, 1).float().masked_fill(beyond, 0.0) for x in (estimate, target))
    return ours, theirs.detach(), each


def pitch_loss(predicted: PredictedPitch, f0: Tensor, lengths: Tensor) -> Tensor:
    """Compare a predicted pitch with the tracked one.

    Where there is a voice the absolute difference in octaves, and everywhere the binary
    cross-entropy of there being one.

    Parameters
    ----------
    predicted : PredictedPitch
        Shapes ``(B, T)``.
    f0 : Tensor
        Shape ``(B, T)``: in Hz, 0 where there is no voice.
    lengths : Tensor
        Shape ``(B,)``: valid frames.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Examples
    --------
    >>> f0 = torch.tensor([[0.0, 100.0, 100.0]])
    >>> predicted = PredictedPitch((2 * f0.clamp(min=1)).log(), torch.where(f0 > 0, 20.0, -20.0))
    >>> pitch_loss(predicted, f0, torch.tensor([3])).tolist()
    [1.0]
    """
    valid = length_mask(lengths, f0.shape[1])
    voiced = (f0 > 0) & valid
    octaves = (predicted.log_f0 - f0.clamp(min=1.0).log()).abs() / math.log(2.0)
    octaves = octaves.where(voiced, 0.0).sum(1) / voiced.sum(1).clamp(min=1)
    doubt = F.binary_cross_entropy_with_logits(
        predicted.voicing, voiced.to(predicted.voicing), reduction="none"
    )
    return octaves + doubt.where(valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)
