"""Classification of speakers with margins: what teaches an embedding to tell voices apart."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossKind = Literal["softmax", "am", "aam"]
_COSINE_END = 1e-7
"""Distance from 1 of the largest cosine: the gradient of its angle is infinite there."""


class SpeakerLoss(nn.Module):
    """Softmax over speakers, plain or with a margin, and the speakers' weights.

    With the angle ``t`` between an embedding and its speaker's weight, the speaker's logit is

    - ``"softmax"``: a linear layer's, with bias;
    - ``"am"``: ``scale * (cos(t) - margin)``; additive margin;
    - ``"aam"``: ``scale * cos(t + margin)``; additive angular margin. Where ``t + margin`` would
      pass 180 degrees, ``scale * (cos(t) - margin * sin(margin))`` continues it downwards.

    and the others' with a margin are ``scale * cos``. With ``num_centers`` above one, each speaker
    has that many weights and the nearest one counts, so that wrong labels and other rooms can
    gather round a centre of their own.

    The margin grows linearly from 0 over ``warmup_steps`` calls in training mode, after
    ``warmup_start`` calls without one; calls are counted in the state dict.

    Parameters
    ----------
    embed_dim : int
        Size of an embedding.
    num_speakers : int
        Speakers in training.
    kind : {"softmax", "am", "aam"}
        See above.
    margin : float
        A cosine for ``"am"``, radians for ``"aam"``; 0.2 in ECAPA-TDNN.
    scale : float
        Of the cosines; 30 in ECAPA-TDNN.
    num_centers : int
        Weights of each speaker.
    warmup_start, warmup_steps : int
        See above; by default the margin is there from the first call on.
    hidden_size : int, optional
        Put a layer between: leaky ReLU and batch norm, linear, leaky ReLU and batch norm. It is
        segment 7 of x-vectors, and not part of the embedding.

    Raises
    ------
    ValueError
        If the kind is unknown, a number is out of range, or centres are asked of ``"softmax"``.

    References
    ----------
    Wang, Cheng, Liu and Liu (2018), "Additive margin softmax for face verification", equation 6;
    Deng, Guo, Xue and Zafeiriou (2019), "ArcFace", equation 3; Deng et al. (2020), "Sub-center
    ArcFace", equation 2; Xiang et al. (2019), "Margin matters", for speakers.

    Examples
    --------
    >>> loss = SpeakerLoss(embed_dim=2, num_speakers=2, kind="am", margin=0.25, scale=2.0)
    >>> with torch.no_grad():
    ...     _ = loss.weight.copy_(torch.eye(2))
    >>> value = loss(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
    >>> logits = torch.tensor([2.0 * (1.0 - 0.25), 0.0])
    >>> bool((value - (logits.logsumexp(0) - logits[0])).abs() < 1e-6)
    True
    >>> loss.scores(torch.tensor([[5.0, 0.0]])).tolist()
    [[2.0, 0.0]]
    """

    steps: Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        num_speakers: int,
        kind: LossKind = "aam",
        margin: float = 0.2,
        scale: float = 30.0,
        num_centers: int = 1,
        warmup_start: int = 0,
        warmup_steps: int = 0,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("softmax", "am", "aam"):
            raise ValueError(f"unknown kind {kind!r}: choose 'softmax', 'am' or 'aam'")
        self.embed_dim = embed_dim
        self.num_speakers = num_speakers
        self.kind = kind
        self.margin = margin
        self.scale = scale
        self.num_centers = num_centers
        self.warmup_start = warmup_start
        self.warmup_steps = warmup_steps
        self.hidden_size = hidden_size
        self._check()
        width = embed_dim if hidden_size is None else hidden_size
        self.hidden = None if hidden_size is None else _hidden(embed_dim, hidden_size)
        self.weight = nn.Parameter(torch.empty(num_speakers * num_centers, width))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(num_speakers)) if kind == "softmax" else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _check(self) -> None:
        if min(self.embed_dim, self.num_speakers, self.num_centers) < 1:
            raise ValueError(
                "embed_dim, num_speakers and num_centers must be at least 1, got "
                f"{self.embed_dim}, {self.num_speakers} and {self.num_centers}"
            )
        if self.kind == "softmax" and self.num_centers > 1:
            raise ValueError(
                f"num_centers={self.num_centers} needs cosines: choose kind 'am' or 'aam'"
            )
        if not 0 <= self.margin < math.pi / 2 or not self.scale > 0:
            raise ValueError(
                f"need 0 <= margin < pi / 2 and scale > 0, got {self.margin} and {self.scale}"
            )
        if min(self.warmup_start, self.warmup_steps) < 0:
            raise ValueError(
                "warmup_start and warmup_steps cannot be negative, got "
                f"{self.warmup_start} and {self.warmup_steps}"
            )

    def current_margin(self) -> Tensor:
        """Return the margin of the next call, a float32 scalar.

        Examples
        --------
        >>> loss = SpeakerLoss(embed_dim=2, num_speakers=2, warmup_start=2, warmup_steps=4)
        >>> for _ in range(4):
        ...     _ = loss(torch.eye(2), torch.tensor([0, 1]))
        >>> round(loss.current_margin().item(), 6)
        0.1
        """
        done = (self.steps - self.warmup_start).float()
        if self.warmup_steps == 0:
            return self.margin * (done >= 0).float()
        return self.margin * (done / self.warmup_steps).clamp(0.0, 1.0)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Give the logits ``(B, num_speakers)`` of ``(B, embed_dim)``, without a margin."""
        logits = self._linear(embeddings)
        return logits if self.kind == "softmax" else self.scale * logits

    def forward(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        """Give the cross-entropy of each item.

        Parameters
        ----------
        embeddings : Tensor
            Shape ``(B, embed_dim)``, of any length.
        speakers : Tensor
            Shape ``(B,)``, int64 in ``[0, num_speakers)``.

        Returns
        -------
        Tensor
            Shape ``(B,)``, float32, in nats.

        Raises
        ------
        ValueError
            If the shapes disagree.
        """
        if embeddings.dim() != 2 or speakers.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings must be (B, {self.embed_dim}) and speakers (B,), got "
                f"{tuple(embeddings.shape)} and {tuple(speakers.shape)}"
            )
        logits = self._linear(embeddings)
        if self.kind != "softmax":
            logits = self.scale * self._with_margin(logits, speakers.unsqueeze(1))
        if self.training:
            self.steps += 1
        return F.cross_entropy(logits, speakers, reduction="none")

    def _linear(self, embeddings: Tensor) -> Tensor:
        """Logits of a softmax, cosines of the others, float32: (B, num_speakers)."""
        if self.hidden is not None:
            embeddings = self.hidden(embeddings)
        if self.kind == "softmax":
            return F.linear(embeddings, self.weight, self.bias).float()
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        if self.num_centers > 1:
            cosines = cosines.unflatten(1, (self.num_speakers, -1)).amax(dim=2)
        return cosines

    def _with_margin(self, cosines: Tensor, speakers: Tensor) -> Tensor:
        """Lower each item's cosine (B, num_speakers) with its own speaker (B, 1)."""
        own = cosines.gather(1, speakers)
        margin = self.current_margin()
        if self.kind == "am":
            return cosines.scatter(1, speakers, own - margin)
        own = own.clamp(-1.0 + _COSINE_END, 1.0 - _COSINE_END)
        turned = own * margin.cos() - (1.0 - own.square()).sqrt() * margin.sin()
        beyond = own <= -margin.cos()
        lowered = torch.where(beyond, own - margin * margin.sin(), turned)
        return cosines.scatter(1, speakers, lowered)


def _hidden(embed_dim: int, hidden_size: int) -> nn.Module:
    return nn.Sequential(
        nn.LeakyReLU(),
        nn.BatchNorm1d(embed_dim),
        nn.Linear(embed_dim, hidden_size),
        nn.LeakyReLU(),
        nn.BatchNorm1d(hidden_size),
    )
