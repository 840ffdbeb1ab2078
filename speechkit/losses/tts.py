"""Losses of the text-to-speech models that are not recurrent.

Each part is a mean over an item's own frames or symbols, times its weight.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.losses.ctc import ctc_loss
from speechkit.losses.tacotron import TacotronLoss
from speechkit.nn.acoustic_outputs import OnePassOutput, Prosody
from speechkit.nn.masking import mask_padding

MelDistance = Literal["l1", "l2"]
_IMPOSSIBLE = -1e4
"""Logit of a symbol that an item does not have: the kernel of CTC gives NaN gradients for -inf."""


def forward_sum_loss(
    log_attention: Tensor, mel_lengths: Tensor, token_lengths: Tensor, *, blank_logit: float = -1.0
) -> Tensor:
    """Negative log-likelihood of all monotonic alignments of an item's symbols to its frames.

    Badlani et al. 2021, "One TTS alignment to rule them all", section 2: CTC with the
    item's own symbols ``1, 2, .. U`` as labels, all different, and a blank of a fixed logit.

    Parameters
    ----------
    log_attention : Tensor
        Shape ``(B, T, U)``: log-probabilities of the symbols at each frame.
    mel_lengths, token_lengths : Tensor
        Shape ``(B,)``: valid frames and symbols.
    blank_logit : float
        That of a frame of no symbol; a very low one leaves none.

    Returns
    -------
    Tensor
        Shape ``(B,)``: in nats per frame.

    Examples
    --------
    >>> log_attention = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]]).log()
    >>> loss = forward_sum_loss(
    ...     log_attention, torch.tensor([3]), torch.tensor([2]), blank_logit=-1e4)
    >>> round((-3 * loss).exp().item(), 4)  # 1 1 2 and 1 2 2: 0.75 x (0.25 + 0.25)
    0.375
    """
    num_symbols = log_attention.shape[2]
    labels = torch.arange(1, num_symbols + 1, device=log_attention.device)
    absent = (labels > token_lengths.unsqueeze(1)).unsqueeze(1)
    logits = log_attention.float().masked_fill(absent, _IMPOSSIBLE)
    logits = mask_padding(F.pad(logits, (1, 0), value=blank_logit), mel_lengths)
    targets = labels.expand(len(log_attention), -1)
    total = ctc_loss(logits.log_softmax(dim=2), mel_lengths, targets, token_lengths)
    return total / mel_lengths


def binarization_loss(log_attention: Tensor, alignment: Tensor) -> Tensor:
    """Negative log-probability of the best alignment: what makes the soft one as hard.

    Badlani et al. 2021, "One TTS alignment to rule them all", section 2.

    Parameters
    ----------
    log_attention : Tensor
        Shape ``(B, T, U)``: log-probabilities of the symbols at each frame.
    alignment : Tensor
        Shape ``(B, T, U)``: zeros and ones, all zero beyond an item's frames.

    Returns
    -------
    Tensor
        Shape ``(B,)``: in nats per frame.

    Examples
    --------
    >>> binarization_loss(torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.0, 1.0]]]))
    tensor([0.6931])
    """
    chosen = torch.where(alignment > 0, log_attention, 0.0).sum(dim=(1, 2))
    return -chosen / alignment.sum(dim=(1, 2)).clamp(min=1)


def mel_distance(
    estimate: Tensor, target: Tensor, lengths: Tensor, *, kind: MelDistance = "l1"
) -> Tensor:
    """Mean distance of two spectrograms over an item's frames and their bins.

    Parameters
    ----------
    estimate, target : Tensor
        Shape ``(B, T, num_mels)``.
    lengths : Tensor
        Shape ``(B,)``: valid frames.
    kind : {"l1", "l2"}
        Absolute or squared difference.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Raises
    ------
    ValueError
        If ``kind`` is unknown.

    Examples
    --------
    >>> mel_distance(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 3.0), torch.tensor([1]), kind="l2")
    tensor([9.])
    """
    if kind not in ("l1", "l2"):
        raise ValueError(f"unknown distance {kind!r}: choose from ['l1', 'l2']")
    difference = mask_padding(estimate, lengths) - mask_padding(target, lengths)
    size = difference.abs() if kind == "l1" else difference.square()
    return size.mean(dim=2).sum(dim=1) / lengths.clamp(min=1)


class OnePassLoss:
    """Spectrogram, alignment, durations, and prosody where it is predicted.

    Parameters
    ----------
    mel : {"l1", "l2"}
        Distance of the spectrograms.
    alignment_weight : float
        Of `forward_sum_loss`.
    binarization_weight : float
        Of `binarization_loss`.
    binarization_start : int
        Updates before the binarization counts: made hard from the first one, alignments stay where
        chance put them. The default is that of RAD-TTS (Shih et al. 2021), whose published settings
        begin after 18,000 updates; a training with fewer does without.
    duration_weight, prosody_weight : float
        Of the squared errors of the logarithms of the durations, and of pitch and energy; 0.1 each
        in FastPitch (Łańcucki 2021).

    Raises
    ------
    ValueError
        If ``mel`` is unknown, or the start negative.

    Attributes
    ----------
    updates : float
        Updates made so far, 0 at first. Whoever trains sets it before each batch, and to infinity
        for validation, whose loss then means the same from beginning to end.

    Examples
    --------
    >>> attention = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    >>> outputs = OnePassOutput(
    ...     mel=torch.zeros(1, 2, 4), log_attention=attention.log(), alignment=attention.round(),
    ...     log_durations=torch.zeros(1, 2), durations=torch.tensor([[1, 1]]),
    ...     pitch=None, energy=None)
    >>> loss, sizes = OnePassLoss(binarization_start=100), torch.tensor([2])
    >>> losses = loss(outputs, torch.ones(1, 2, 4), sizes, sizes)
    >>> sorted(losses), losses["mel"], losses["binarization"]
    (['alignment', 'binarization', 'duration', 'mel'], tensor([1.]), tensor([0.]))
    >>> loss.updates = 100
    >>> loss(outputs, torch.ones(1, 2, 4), sizes, sizes)["binarization"]
    tensor([0.0164])
    """

    def __init__(
        self,
        *,
        mel: MelDistance = "l1",
        alignment_weight: float = 1.0,
        binarization_weight: float = 0.1,
        binarization_start: int = 18_000,
        duration_weight: float = 0.1,
        prosody_weight: float = 0.1,
    ) -> None:
        if mel not in ("l1", "l2"):
            raise ValueError(f"unknown distance {mel!r}: choose from ['l1', 'l2']")
        if binarization_start < 0:
            raise ValueError(f"binarization_start must not be negative, got {binarization_start}")
        self.mel = mel
        self.alignment_weight = alignment_weight
        self.binarization_weight = binarization_weight
        self.binarization_start = binarization_start
        self.duration_weight = duration_weight
        self.prosody_weight = prosody_weight
        self.updates: float = 0

    def __call__(
        self, outputs: OnePassOutput, mels: Tensor, mel_lengths: Tensor, token_lengths: Tensor
    ) -> dict[str, Tensor]:
        """Score a batch.

        Parameters
        ----------
        outputs : OnePassOutput
            What the model gave.
        mels : Tensor
            Shape ``(B, T, num_mels)``: what it was to give.
        mel_lengths, token_lengths : Tensor
            Shape ``(B,)``.

        Returns
        -------
        dict of str to Tensor
            Each ``(B,)``; their sum is what training minimises.
        """
        log_durations = outputs.durations.clamp(min=1).float().log()
        duration = _symbol_error(Prosody(outputs.log_durations, log_durations), token_lengths)
        started = self.updates >= self.binarization_start
        hard = self.binarization_weight if started else 0.0
        losses = {
            "mel": mel_distance(outputs.mel, mels, mel_lengths, kind=self.mel),
            "alignment": self.alignment_weight
            * forward_sum_loss(outputs.log_attention, mel_lengths, token_lengths),
            "binarization": hard * binarization_loss(outputs.log_attention, outputs.alignment),
            "duration": self.duration_weight * duration,
        }
        for name, values in (("pitch", outputs.pitch), ("energy", outputs.energy)):
            if values is not None:
                losses[name] = self.prosody_weight * _symbol_error(values, token_lengths)
        return losses


class TransformerTTSLoss(TacotronLoss):
    """Loss of a `speechkit.models.transformer_tts.TransformerTTS`: Tacotron 2's, by other weights.

    Li et al. 2019, "Neural speech synthesis with Transformer network", section 3.7: the one step
    that is the last weighs 5 to 8 times what another does. The guided attention is that of the
    model's guided heads.

    Parameters
    ----------
    mel : {"l2", "l1", "both"}
        Squared error, absolute error, or their sum.
    stop_weight : float
        Factor of the stop's cross entropy.
    stop_positive_weight : float
        Factor of the one step that is the last, against all those that are not.
    guided_weight : float
        Factor of the guided attention; 0 turns it off. May be set between epochs.
    guided_sigma : float
        Width of its diagonal.

    Examples
    --------
    >>> TransformerTTSLoss().stop_positive_weight
    5.0
    """

    def __init__(
        self,
        *,
        mel: Literal["l2", "l1", "both"] = "l2",
        stop_weight: float = 1.0,
        stop_positive_weight: float = 5.0,
        guided_weight: float = 1.0,
        guided_sigma: float = 0.2,
    ) -> None:
        super().__init__(
            mel=mel,
            stop_weight=stop_weight,
            stop_positive_weight=stop_positive_weight,
            guided_weight=guided_weight,
            guided_sigma=guided_sigma,
        )


def _symbol_error(values: Prosody, token_lengths: Tensor) -> Tensor:
    """Mean squared error over an item's symbols, ``(B,)``."""
    error = mask_padding((values.predicted.float() - values.target).square(), token_lengths)
    return error.sum(dim=1) / token_lengths
