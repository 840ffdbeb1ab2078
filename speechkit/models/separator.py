"""Separation of what sounds together: encoder, mask network, decoder."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from speechkit.models.separate import AudioSeparator
from speechkit.nn.masking import mask_padding


class Separated(NamedTuple):
    """What a separator gives.

    Attributes
    ----------
    estimates : Tensor
        Shape ``(B, S, T)``, zero in the padding.
    lengths : Tensor
        Shape ``(B,)``: valid samples.
    """

    estimates: Tensor
    lengths: Tensor


class Separator(AudioSeparator, nn.Module):
    """One template for all mask networks in the time domain.

    Luo and Mesgarani 2019, "Conv-TasNet", figure 1(a): each source is the decoder's output on the
    encoder's frames times the source's mask. Which mask network it has makes it a Conv-TasNet
    (`speechkit.nn.tcn`), a dual-path RNN or a SepFormer (`speechkit.nn.dual_path`). With one source
    it enhances. ``separate`` and ``enhance`` take files and tensors of any rate and length
    (`speechkit.models.separate.AudioSeparator`).

    Parameters
    ----------
    sample_rate : int
        Of mixtures and sources.
    encoder : nn.Module
        ``(B, T)`` and lengths to frames, `Padded`: `speechkit.nn.filterbank.FilterbankEncoder`.
    masker : nn.Module
        Frames ``(B, T', N)`` and lengths to masks ``(B, S, T', N)``, with ``num_features`` and
        ``num_sources``.
    decoder : nn.Module
        Frames ``(B, T', N)`` and a number of samples to waveforms.

    Raises
    ------
    ValueError
        If the parts have other numbers of features, or encoder and decoder another geometry.

    Examples
    --------
    >>> import torch
    >>> from speechkit.nn.filterbank import FilterbankDecoder, FilterbankEncoder
    >>> from speechkit.nn.tcn import ConvTasNetMasker
    >>> model = Separator(
    ...     sample_rate=8000,
    ...     encoder=FilterbankEncoder(num_filters=16),
    ...     masker=ConvTasNetMasker(
    ...         num_features=16, num_sources=2, bottleneck_size=8, hidden_size=12, skip_size=8,
    ...         num_blocks=2, num_repeats=1,
    ...     ),
    ...     decoder=FilterbankDecoder(num_filters=16),
    ... )
    >>> model(torch.randn(3, 400), torch.tensor([400, 30, 7])).estimates.shape
    torch.Size([3, 2, 400])
    >>> sources = model.separate(torch.randn(2, 44100), 44100)  # stereo, at another rate
    >>> sources.estimates.shape, sources.sample_rate
    (torch.Size([2, 44100]), 44100)
    """

    def __init__(
        self, *, sample_rate: int, encoder: nn.Module, masker: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__()
        parts: dict[str, Any] = {"encoder": encoder, "masker": masker, "decoder": decoder}
        sizes = {
            name: getattr(part, "num_features" if name == "masker" else "num_filters")
            for name, part in parts.items()
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the parts disagree about the features of a frame: {sizes}")
        for name in ("kernel_size", "stride"):
            if getattr(encoder, name) != getattr(decoder, name):
                raise ValueError(
                    f"{name} is {getattr(encoder, name)} in the encoder and "
                    f"{getattr(decoder, name)} in the decoder"
                )
        self.sample_rate = sample_rate
        self.encoder = encoder
        self.masker = masker
        self.decoder = decoder

    @property
    def num_sources(self) -> int:
        """How many sources a mixture is separated into."""
        return int(self.masker.num_sources)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """Samples between two frames of the encoder."""
        return int(self.encoder.stride)  # type: ignore[arg-type]

    def forward(self, waveform: Tensor, lengths: Tensor) -> Separated:
        """Separate mixtures.

        Parameters
        ----------
        waveform : Tensor
            Shape ``(B, T)``.
        lengths : Tensor
            Shape ``(B,)``: valid samples.

        Returns
        -------
        Separated
            Estimates ``(B, S, T)``, as loud as the network makes them.

        Raises
        ------
        ValueError
            If the waveform is not ``(B, T)``.
        """
        frames, num_frames = self.encoder(waveform, lengths)
        masks = self.masker(frames, num_frames)  # (B, S, T', N)
        batch, sources = masks.shape[:2]
        masked = masks * frames.unsqueeze(1)
        # The masks mean nothing in the padding, and kernels there reach into the last samples.
        repeated = num_frames.repeat_interleave(sources)
        masked = mask_padding(masked.flatten(0, 1), repeated)
        estimates = self.decoder(masked, waveform.shape[1]).unflatten(0, (batch, sources))
        valid = lengths.repeat_interleave(sources)
        return Separated(mask_padding(estimates.flatten(0, 1), valid).view_as(estimates), lengths)
