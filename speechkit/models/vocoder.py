"""Vocoders: mel spectra to waveforms.

All have the same face: ``vocoder(mel, lengths)`` takes ``(B, T, num_mels)`` and gives waveforms of
``hop_length`` samples a frame; ``vocoder.features`` is the `speechkit.features.spectrum.LogMel`
that makes the mels which it needs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechkit.data.errors import DataError
from speechkit.features.mel_settings import mel_hash as hash_of
from speechkit.features.spectrum import LogMel
from speechkit.nn.masking import Padded, mask_padding, ragged
from speechkit.nn.seanet_conv import fold_weight_norm

__all__ = ["GriffinLim", "NeuralVocoder", "Vocoder"]


class Vocoder(nn.Module):
    """What all vocoders share; a vocoder of its own defines ``_make``.

    Parameters
    ----------
    features : LogMel
        Makes the mels that the vocoder takes.
    mel_hash : str, optional
        `speechkit.features.mel_settings.mel_hash` of ``features``. It is computed; a model folder
        has it, and one whose settings were changed afterwards is refused.

    Raises
    ------
    ValueError
        If ``mel_hash`` is not that of the features.
    """

    def __init__(self, *, features: LogMel, mel_hash: str | None = None) -> None:
        super().__init__()
        found = hash_of(features)
        if mel_hash not in (None, found):
            raise ValueError(
                f"the model was made for mels of hash {mel_hash}, but its features have {found}: "
                "its settings were changed; use those that it was trained with"
            )
        self.features = features
        self.mel_hash = found

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.features.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples of a frame."""
        return self.features.hop_length

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Padded:
        """Make waveforms.

        Parameters
        ----------
        mel : Tensor
            Shape ``(B, T, num_mels)``, as ``features`` makes them.
        lengths : Tensor, optional
            Shape ``(B,)``: valid frames; all by default. What lies beyond changes nothing.

        Returns
        -------
        Padded
            Waveforms ``(B, T * hop_length)``, zero beyond their lengths, and samples ``(B,)``:
            ``lengths * hop_length``. Frame ``t`` is about sample ``t * hop_length``, so that the
            mels of ``N`` samples give at least ``N``.

        Raises
        ------
        DataError
            If the mels have another shape.
        """
        if mel.dim() != 3 or mel.shape[2] != self.features.num_mels:
            raise DataError(
                f"need mels (B, T, {self.features.num_mels}), got shape {tuple(mel.shape)}: were "
                "they made with other settings?"
            )
        if lengths is None:
            lengths = torch.full((len(mel),), mel.shape[1], device=mel.device)
        data = self._make(mel, lengths)
        return Padded(data, lengths * self.hop_length)

    def _make(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Give ``(B, T * hop_length)``, zero beyond the items' ends."""
        raise NotImplementedError(f"{type(self).__name__} must define _make")

    def copy_synthesis(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Take waveforms to mels and back: what the vocoder alone does to a recording.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, N)``.
        lengths : Tensor
            Shape ``(B,)``: valid samples.

        Returns
        -------
        Tensor
            Shape ``(B, N)``, zero beyond the lengths.
        """
        made = self(*self.features(waveform, lengths)).data[:, : waveform.shape[1]]
        return mask_padding(made, lengths)


class GriffinLim(Vocoder):
    """Phases found by going back and forth (fast Griffin-Lim: Perraudin et al. 2013).

    There is nothing to train. The magnitudes of the bins are those, none below zero, whose mel is
    nearest to the one given: multiplicative updates (Lee & Seung 2001) from the energy of each band
    spread over its bins.

    Parameters
    ----------
    features : LogMel
        Makes the mels that the vocoder takes.
    iterations : int
        Times back and forth.
    momentum : float
        Of the phases, in [0, 1); 0 is the method of Griffin & Lim 1984.
    inversion_steps : int
        Updates from mels to magnitudes.
    seed : int
        Of the phases at the start. A mel always gives the same waveform.
    mel_hash : str, optional
        As in `Vocoder`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> vocoder = GriffinLim(features=LogMel(num_mels=40), iterations=4)
    >>> waveform, lengths = vocoder(torch.zeros(2, 30, 40), torch.tensor([30, 7]))
    >>> waveform.shape, lengths.tolist()
    (torch.Size([2, 4800]), [4800, 1120])
    """

    def __init__(
        self,
        *,
        features: LogMel,
        iterations: int = 32,
        momentum: float = 0.99,
        inversion_steps: int = 30,
        seed: int = 0,
        mel_hash: str | None = None,
    ) -> None:
        super().__init__(features=features, mel_hash=mel_hash)
        if iterations < 0 or inversion_steps < 0 or not 0 <= momentum < 1:
            raise ValueError(
                "need iterations and inversion_steps of at least 0 and 0 <= momentum < 1, got "
                f"{iterations}, {inversion_steps} and {momentum}"
            )
        self.iterations = iterations
        self.momentum = momentum
        self.inversion_steps = inversion_steps
        self.seed = seed

    def _make(self, mel: Tensor, lengths: Tensor) -> Tensor:
        samples = mel.shape[1] * self.hop_length
        items = [self._item(mel[i, :n]) for i, n in enumerate(lengths.tolist())]
        made = pad_sequence(items, batch_first=True) if items else mel.new_zeros(0, samples)
        return F.pad(made, (0, samples - made.shape[1]))

    @torch.no_grad()
    def _item(self, mel: Tensor) -> Tensor:
        """Make ``(T * hop_length,)`` of ``(T, num_mels)``."""
        from torchaudio.functional import griffinlim

        features, frames = self.features, len(mel)
        if frames == 0:
            return mel.new_zeros(0)
        # N samples have N // hop + 1 frames, and the transform mirrors half a window at the ends.
        least = features.n_fft // 2 // self.hop_length + 3
        more = max(frames + 1, least) - frames
        devices = [mel.device] if mel.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.autocast(mel.device.type, enabled=False):
            magnitudes = self.magnitudes(torch.cat([mel, mel[-1:].expand(more, -1)]).float())
            torch.manual_seed(self.seed)
            waveform: Tensor = griffinlim(
                magnitudes.T,
                features._window,
                features.n_fft,
                self.hop_length,
                features.win_length or features.n_fft,
                1.0,
                self.iterations,
                self.momentum,
                None,
                True,
            )
        return waveform[: frames * self.hop_length]

    def magnitudes(self, mel: Tensor) -> Tensor:
        """Estimate the magnitudes of a spectrum, ``(T, n_fft // 2 + 1)``, of ``(T, num_mels)``."""
        features = self.features
        if features.log == "natural":
            mel = mel.exp()
        elif features.log == "db":
            mel = 10.0 ** (mel / (10.0 if features.power == 2.0 else 20.0))
        filters = features._filters  # (bins, num_mels)
        mel, tiny = mel.clamp_min(0.0), 1e-12
        level = mel / filters.sum(0).clamp_min(tiny)
        bins = level @ (filters / filters.sum(1, keepdim=True).clamp_min(tiny)).T
        wanted = mel @ filters.T
        mixing = filters @ filters.T
        for _ in range(self.inversion_steps):
            bins = bins * wanted / (bins @ mixing).clamp_min(tiny)
        return bins.sqrt() if features.power == 2.0 else bins


class NeuralVocoder(Vocoder):
    """A network that makes waveforms, with the mels that it takes.

    On a CPU, and where no gradient is wanted, items are made one by one: measured faster than a
    batch, and exact for each.

    Parameters
    ----------
    features : LogMel
        Makes the mels that the vocoder takes.
    generator : nn.Module
        ``(B, num_mels, T)``, with lengths or without, to ``(B, 1, T * hop_length)``:
        `speechkit.nn.hifigan.HiFiGANGenerator` or
        `speechkit.nn.source_filter.SourceFilterGenerator`.
    mean, scale : float
        What is subtracted from a mel, and then divided by, before the generator sees it; the
        published networks see logarithms as they are.
    mel_hash : str, optional
        As in `Vocoder`.

    Raises
    ------
    ValueError
        If the parts do not fit together.

    Examples
    --------
    >>> from speechkit.nn.hifigan import HiFiGANGenerator
    >>> generator = HiFiGANGenerator(
    ...     num_mels=40, channels=8, upsample_rates=(8, 5), upsample_kernels=(16, 11),
    ...     block_kernels=(3,), block_dilations=((1, 3),))
    >>> features = LogMel(num_mels=40, hop_length=40)
    >>> vocoder = NeuralVocoder(features=features, generator=generator)
    >>> waveform, lengths = vocoder(torch.randn(2, 9, 40), torch.tensor([9, 5]))
    >>> waveform.shape, lengths.tolist()
    (torch.Size([2, 360]), [360, 200])
    """

    def __init__(
        self,
        *,
        features: LogMel,
        generator: nn.Module,
        mean: float = 0.0,
        scale: float = 1.0,
        mel_hash: str | None = None,
    ) -> None:
        super().__init__(features=features, mel_hash=mel_hash)
        theirs = (generator.num_mels, generator.hop_length)
        if theirs != (features.num_mels, features.hop_length):
            raise ValueError(
                f"the generator takes {theirs[0]} bands and gives {theirs[1]} samples a frame, but "
                f"features have num_mels={features.num_mels} and hop_length={features.hop_length}"
            )
        rate = getattr(generator, "sample_rate", features.sample_rate)
        if rate != features.sample_rate:
            raise ValueError(
                f"the generator's sample_rate is {rate}, the features' {features.sample_rate}"
            )
        if scale <= 0:
            raise ValueError(f"scale={scale} must be above 0")
        self.generator = generator
        self.mean = mean
        self.scale = scale

    def fold_weight_norm(self) -> NeuralVocoder:
        """Put plain weights in the place of weight norm, for inference; give the vocoder back.

        It can be saved and opened as it is afterwards.
        """
        fold_weight_norm(self)
        return self

    def _make(self, mel: Tensor, lengths: Tensor) -> Tensor:
        x = ((mel - self.mean) / self.scale).transpose(1, 2)
        on_cpu, whole = mel.device.type == "cpu", self.generator.takes_lengths
        # A look at the lengths would make a GPU wait; there masks cost little.
        valid = ragged(lengths, mel.shape[1]) if on_cpu or not whole else lengths
        one_by_one = (on_cpu and not torch.is_grad_enabled()) or (valid is not None and not whole)
        if not one_by_one or len(mel) == 0:
            wave: Tensor = self.generator(x, valid)
            return wave.squeeze(1)
        samples = mel.shape[1] * self.hop_length
        waves = [
            self.generator(x[i : i + 1, :, :frames]).flatten()
            for i, frames in enumerate(lengths.tolist())
        ]
        return torch.stack([F.pad(wave, (0, samples - len(wave))) for wave in waves])
