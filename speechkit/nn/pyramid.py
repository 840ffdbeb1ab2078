"""The pyramidal recurrent encoder: half the frames after each layer."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import Padded
from speechkit.nn.rnn import RecurrentEncoder


class PyramidalEncoder(nn.Module):
    """Bidirectional layers, with pairs of frames joined to one between each two of them.

    Chan et al. 2016, "Listen, attend and spell", eq. 5: a layer reads ``[h_2i, h_2i+1]`` of the
    layer below, so that attention has fewer frames to choose from. The last frame of an odd number
    is joined with zeros::

        layer 2      ab      cd      e0
        layer 1    a    b  c    d  e

    Parameters
    ----------
    input_size : int
        Features per frame.
    hidden_size : int
        Units of one direction of a layer.
    num_layers : int
        Layers, at least 1; the frames become ``2 ** (num_layers - 1)`` times fewer.
    cell : {"lstm", "gru"}
        Kind of unit.
    dropout : float
        Probability of dropping a value between layers.

    Raises
    ------
    ValueError
        If the cell is unknown or there is no layer.

    Examples
    --------
    >>> import torch
    >>> encoder = PyramidalEncoder(input_size=8, hidden_size=16, num_layers=3)
    >>> out = encoder(torch.randn(2, 10, 8), torch.tensor([10, 5]))
    >>> out.data.shape, out.lengths.tolist()
    (torch.Size([2, 3, 32]), [3, 2])
    """

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        cell: Literal["lstm", "gru"] = "lstm",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = cell
        self.dropout = dropout
        sizes = [input_size] + [4 * hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(
            RecurrentEncoder(input_size=size, hidden_size=hidden_size, num_layers=1, cell=cell)
            for size in sizes
        )
        self.drop = Dropout(dropout)

    @property
    def output_size(self) -> int:
        """Features per output frame."""
        return 2 * self.hidden_size

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames: half, rounded up, after each layer."""
        for _ in range(self.num_layers - 1):
            lengths = (lengths + 1) // 2
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Map ``(B, T, input_size)`` to ``(B, T', output_size)``, ``T' = num_frames(T)``."""
        out: Padded = self.layers[0](x, lengths)
        for layer in self.layers[1:]:
            out = layer(*_join_pairs(Padded(self.drop(out.data), out.lengths)))
        return out


def _join_pairs(padded: Padded) -> Padded:
    """``(B, T, F)``, zero in the padding, to ``(B, ceil(T / 2), 2 F)``."""
    x, lengths = padded
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
    x = x.reshape(x.shape[0], x.shape[1] // 2, 2 * x.shape[2])
    return Padded(x, (lengths + 1) // 2)
