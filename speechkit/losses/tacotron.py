"""The loss of Tacotron 2: both spectrograms, the stop, and a push of the attention to the diagonal.

Each part is a mean over an item's own frames or steps, so that padding counts for nothing and a
long sentence weighs what a short one does.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit.nn.masking import length_mask, mask_padding
from speechkit.nn.tacotron import TacotronOutput


def guided_attention(
    alignment: Tensor, step_lengths: Tensor, token_lengths: Tensor, *, sigma: float = 0.2
) -> Tensor:
    """How far from the diagonal an attention looks.

    Tachibana et al. 2018, "Efficiently trainable text-to-speech system based on deep
    convolutional networks with guided attention", section 4.1: the mean over steps ``t`` of
    ``sum over symbols n of A(t, n) (1 - exp(-(n / N - t / T)^2 / (2 sigma^2)))``. The paper also
    divides by N; without, the value does not depend on the text's length and lies in [0, 1).

    Parameters
    ----------
    alignment : Tensor
        Shape ``(B, S, U)``.
    step_lengths, token_lengths : Tensor
        Shape ``(B,)``: T and N of each item.
    sigma : float
        Width of the diagonal as a share of the whole, positive.

    Returns
    -------
    Tensor
        Shape ``(B,)``.

    Raises
    ------
    ValueError
        If ``sigma`` is not positive.

    Examples
    --------
    >>> lengths = torch.tensor([4])
    >>> straight, reversed_ = torch.eye(4)[None], torch.eye(4).flip(0)[None]
    >>> guided_attention(straight, lengths, lengths).tolist()
    [0.0]
    >>> guided_attention(reversed_, lengths, lengths).item() > 0.5
    True
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    steps, symbols = alignment.shape[1:]
    device = alignment.device
    time = torch.arange(steps, device=device) / step_lengths.clamp(min=1).unsqueeze(1)
    place = torch.arange(symbols, device=device) / token_lengths.clamp(min=1).unsqueeze(1)
    distance = place.unsqueeze(1) - time.unsqueeze(2)  # (B, S, U)
    penalty = 1.0 - torch.exp(-distance.square() / (2.0 * sigma**2))
    # What lies beyond the text is masked, so that garbage there is none of the sum.
    valid = length_mask(token_lengths, symbols).unsqueeze(1)
    cost = torch.where(valid, alignment.float() * penalty, 0.0).sum(dim=-1)
    return _mean(cost, step_lengths)


class TacotronLoss:
    """Loss of a `speechkit.models.tacotron2.Tacotron2`.

    Shen et al. 2018, section 2.2: squared errors of the spectrogram before and after the post-net,
    and the cross entropy of the stop; with the guided attention of Tachibana et al. 2018.

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

    Raises
    ------
    ValueError
        If the kind of error is unknown.

    Examples
    --------
    >>> mels, lengths, texts = torch.zeros(1, 4, 2), torch.tensor([4]), torch.tensor([3])
    >>> outputs = TacotronOutput(
    ...     coarse=mels + 1, mel=mels + 2, stop_logits=torch.zeros(1, 4),
    ...     alignment=torch.eye(4, 3)[None], step_lengths=torch.tensor([4]),
    ... )
    >>> parts = TacotronLoss(guided_weight=0.0)(outputs, mels, lengths, texts)
    >>> {name: round(value.item(), 4) for name, value in parts.items()}
    {'mel_coarse': 1.0, 'mel': 4.0, 'stop': 0.6931}
    """

    def __init__(
        self,
        *,
        mel: Literal["l2", "l1", "both"] = "l2",
        stop_weight: float = 1.0,
        stop_positive_weight: float = 1.0,
        guided_weight: float = 1.0,
        guided_sigma: float = 0.2,
    ) -> None:
        if mel not in ("l2", "l1", "both"):
            raise ValueError(f"unknown error {mel!r}: choose from ['both', 'l1', 'l2']")
        self.mel = mel
        self.stop_weight = stop_weight
        self.stop_positive_weight = stop_positive_weight
        self.guided_weight = guided_weight
        self.guided_sigma = guided_sigma

    def __call__(
        self, outputs: TacotronOutput, mels: Tensor, mel_lengths: Tensor, token_lengths: Tensor
    ) -> dict[str, Tensor]:
        """Compute the parts, whose sum is minimised.

        Parameters
        ----------
        outputs : TacotronOutput
            What the model gave.
        mels : Tensor
            Shape ``(B, T, num_mels)``.
        mel_lengths, token_lengths : Tensor
            Shape ``(B,)``.

        Returns
        -------
        dict of str to Tensor
            ``mel_coarse``, ``mel``, ``stop``, ``guided`` (where it is on), ``(B,)`` each.
        """
        parts = {
            "mel_coarse": self._error(outputs.coarse, mels, mel_lengths),
            "mel": self._error(outputs.mel, mels, mel_lengths),
            "stop": self.stop_weight * self._stop(outputs),
        }
        if self.guided_weight:
            parts["guided"] = self.guided_weight * guided_attention(
                outputs.alignment, outputs.step_lengths, token_lengths, sigma=self.guided_sigma
            )
        return parts

    def _error(self, estimate: Tensor, mels: Tensor, lengths: Tensor) -> Tensor:
        difference = mask_padding(estimate.float() - mels.float(), lengths)
        error = torch.zeros_like(difference)
        if self.mel != "l1":
            error = error + difference.square()
        if self.mel != "l2":
            error = error + difference.abs()
        return _mean(error.mean(dim=-1), lengths)

    def _stop(self, outputs: TacotronOutput) -> Tensor:
        logits = mask_padding(outputs.stop_logits.float(), outputs.step_lengths)
        steps = torch.arange(logits.shape[1], device=logits.device)
        last = (steps == outputs.step_lengths.unsqueeze(1) - 1).float()
        weight = 1.0 + (self.stop_positive_weight - 1.0) * last
        entropy = F.binary_cross_entropy_with_logits(logits, last, weight, reduction="none")
        return _mean(entropy, outputs.step_lengths)


def _mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean of ``(B, T)`` over each item's own positions."""
    return mask_padding(values, lengths).sum(dim=1) / lengths.clamp(min=1)
