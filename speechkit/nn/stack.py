"""Encoders in sequence, lengths carried along."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from speechkit.nn.masking import Padded


class Stack(nn.Module):
    """Encoders one after the other; an encoder itself.

    Parameters
    ----------
    layers : sequence of nn.Module
        Encoders: ``forward(x, lengths) -> Padded``, ``output_size``, ``num_frames``. Each must
        take what the one before gives.

    Raises
    ------
    ValueError
        If there is no layer, or one's ``input_size`` is not the ``output_size`` before it.

    Examples
    --------
    >>> import torch
    >>> from speechkit.nn.conv import ConvEncoder
    >>> from speechkit.nn.rnn import RecurrentEncoder
    >>> encoder = Stack(layers=[
    ...     ConvEncoder(input_size=80, channels=(64, 64), strides=(2, 2)),
    ...     RecurrentEncoder(input_size=64, hidden_size=32, num_layers=2),
    ... ])
    >>> out = encoder(torch.randn(2, 50, 80), torch.tensor([50, 31]))
    >>> out.data.shape, out.lengths.tolist(), encoder.num_frames(torch.tensor([50])).tolist()
    (torch.Size([2, 13, 64]), [13, 8], [13])
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(layers) == 0:
            raise ValueError("a Stack needs at least one layer")
        for index in range(1, len(layers)):
            given = layers[index - 1].output_size
            wanted = getattr(layers[index], "input_size", given)
            if wanted != given:
                raise ValueError(
                    f"layers[{index}] ({type(layers[index]).__name__}) takes {wanted} features, "
                    f"but layers[{index - 1}] ({type(layers[index - 1]).__name__}) gives {given}"
                )
        self.layers = nn.ModuleList(layers)

    @property
    def input_size(self) -> int:
        """Features per frame of the first layer."""
        return int(self.layers[0].input_size)  # type: ignore[arg-type]

    @property
    def output_size(self) -> int:
        """Features per frame of the last layer."""
        return int(self.layers[-1].output_size)  # type: ignore[arg-type]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Output frames for ``lengths`` input frames."""
        for layer in self.layers:
            lengths = layer.num_frames(lengths)  # type: ignore[operator]
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Padded:
        """Pass ``(B, T, F)`` and its lengths through every layer."""
        out = Padded(x, lengths)
        for layer in self.layers:
            out = layer(out.data, out.lengths)
        return out
