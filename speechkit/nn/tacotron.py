"""Encoder, pre-net, post-net and outputs of Tacotron 2 (Shen et al. 2018, section 2.2 and 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.conv import MaskedBatchNorm
from speechkit.nn.dropout import Dropout, dropout
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.rnn import RecurrentEncoder


class TacotronOutput(NamedTuple):
    """What `speechkit.models.tacotron2.Tacotron2` gives for known spectrograms.

    Attributes
    ----------
    coarse : Tensor
        Shape ``(B, T, num_mels)``: the decoder's frames, zero beyond the lengths.
    mel : Tensor
        Shape ``(B, T, num_mels)``: with the post-net's correction, zero beyond the lengths.
    stop_logits : Tensor
        Shape ``(B, S)``: log odds that a step of ``reduction_factor`` frames is the last.
    alignment : Tensor
        Shape ``(B, S, U)``: where each step looked.
    step_lengths : Tensor
        Shape ``(B,)``: steps of each item.
    """

    coarse: Tensor
    mel: Tensor
    stop_logits: Tensor
    alignment: Tensor
    step_lengths: Tensor


class NormedConv(nn.Module):
    """Convolution along time and batch norm, both of the valid frames alone.

    Parameters
    ----------
    input_size, output_size : int
        Features per frame.
    kernel_size : int
        Odd; in frames.
    gain : {"relu", "tanh", "linear"}
        What follows, for the scale of the random weights.

    Raises
    ------
    ValueError
        If the kernel is even.

    Examples
    --------
    >>> conv = NormedConv(input_size=4, output_size=6, kernel_size=5, gain="relu")
    >>> conv(torch.randn(2, 9, 4), torch.tensor([9, 3])).shape
    torch.Size([2, 9, 6])
    """

    def __init__(self, *, input_size: int, output_size: int, kernel_size: int, gain: str) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that frames stay centred: {kernel_size}")
        self.input_size = input_size
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.gain = gain
        self.conv = nn.Conv1d(input_size, output_size, kernel_size, padding=kernel_size // 2)
        self.norm = MaskedBatchNorm(num_features=output_size)
        scale = nn.init.calculate_gain(gain)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.conv.weight, gain=scale)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map ``(B, T, input_size)`` with zeros as padding to ``(B, T, output_size)``, the same."""
        out: Tensor = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2), lengths)
        return out


class TacotronEncoder(nn.Module):
    """Symbols to a memory: embeddings, convolutions, one bidirectional LSTM.

    Parameters
    ----------
    num_symbols : int
        Size of the symbol set.
    embed_dim : int
        Size of a symbol's embedding.
    output_size : int
        Channels of the convolutions and features of the memory, half of them of each direction;
        even.
    num_convs : int
        Convolutional layers.
    kernel_size : int
        Symbols that a filter sees; odd.
    dropout : float
        Probability of dropping a value after each convolution.

    Raises
    ------
    ValueError
        If ``output_size`` is odd.

    Examples
    --------
    >>> encoder = TacotronEncoder(num_symbols=30, embed_dim=8, output_size=12).eval()
    >>> tokens = torch.tensor([[3, 9, 4], [7, 0, 0]])
    >>> batch = encoder(tokens, torch.tensor([3, 1]))
    >>> alone = encoder(tokens[1:, :1], torch.tensor([1]))
    >>> torch.allclose(batch.data[1, :1], alone.data[0], atol=1e-5)
    True
    """

    def __init__(
        self,
        *,
        num_symbols: int,
        embed_dim: int = 512,
        output_size: int = 512,
        num_convs: int = 3,
        kernel_size: int = 5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if output_size < 2 or output_size % 2:
            raise ValueError(f"output_size is split over two directions: not {output_size}")
        self.num_symbols = num_symbols
        self.embed_dim = embed_dim
        self.output_size = output_size
        self.num_convs = num_convs
        self.kernel_size = kernel_size
        self.dropout = dropout
        self.embedding = nn.Embedding(num_symbols, embed_dim)
        bound = (6.0 / (num_symbols + embed_dim)) ** 0.5
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        sizes = [embed_dim] + [output_size] * num_convs
        self.convs = nn.ModuleList(
            NormedConv(
                input_size=sizes[i],
                output_size=sizes[i + 1],
                kernel_size=kernel_size,
                gain="relu",
            )
            for i in range(num_convs)
        )
        self.drop = Dropout(dropout)
        self.lstm = RecurrentEncoder(
            input_size=sizes[-1], hidden_size=output_size // 2, num_layers=1
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Padded:
        """Map symbols ``(B, U)`` to ``(B, U, output_size)``."""
        x = self.embedding(mask_padding(tokens, lengths))
        x = mask_padding(x, lengths)
        for conv in self.convs:
            x = self.drop(conv(x, lengths).relu())
        out: Padded = self.lstm(x, lengths)
        return out


class Prenet(nn.Module):
    """Linear layers with ReLU and dropout that is never turned off.

    In training the dropout is drawn from torch's generator. When speaking it comes as masks that
    the caller drew from a generator with a seed, so that the same text sounds the same.

    Parameters
    ----------
    input_size : int
        Features of a frame.
    sizes : sequence of int
        Units of each layer.
    dropout : float
        Probability of dropping a value after each layer.

    Raises
    ------
    ValueError
        If there is no layer, or the probability is not in [0, 1).

    Examples
    --------
    >>> prenet = Prenet(input_size=80, sizes=(32, 16)).eval()
    >>> masks = prenet.draw(7, torch.Generator().manual_seed(0))
    >>> prenet(torch.randn(2, 7, 80), masks).shape
    torch.Size([2, 7, 16])
    """

    def __init__(
        self, *, input_size: int, sizes: Sequence[int] = (256, 256), dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not sizes:
            raise ValueError("sizes is empty: give the units of at least one layer")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"the probability of dropout must lie in [0, 1), not {dropout}")
        self.input_size = input_size
        self.sizes = list(sizes)
        self.dropout = dropout
        inputs = [input_size, *sizes[:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(size, output, bias=False) for size, output in zip(inputs, sizes)
        )
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def draw(self, steps: int, generator: torch.Generator) -> list[Tensor]:
        """Draw masks with their scale, ``(steps, size)`` of each layer, from a CPU generator.

        Step after step gives the same as all at once.
        """
        levels = torch.rand(steps, sum(self.sizes), generator=generator)
        masks = (levels >= self.dropout).float() / (1.0 - self.dropout)
        device = self.layers[0].weight.device
        return list(masks.to(device).split(self.sizes, dim=1))  # type: ignore[arg-type]

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Map ``(..., input_size)`` to ``(..., sizes[-1])``; without masks, dropout is random."""
        for index, layer in enumerate(self.layers):
            x = layer(x).relu()
            x = dropout(x, self.dropout) if masks is None else x * masks[index]
        return x


class PostNet(nn.Module):
    """Convolutions that predict what the decoder's frames lack.

    Parameters
    ----------
    num_mels : int
        Features of a frame.
    size : int
        Channels of all layers but the last.
    num_convs : int
        Layers; none gives a post-net of zeros.
    kernel_size : int
        Frames that a filter sees; odd.
    dropout : float
        Probability of dropping a value after each layer.

    Examples
    --------
    >>> postnet = PostNet(num_mels=8, size=16).eval()
    >>> x = torch.randn(2, 6, 8)
    >>> batch, alone = postnet(x, torch.tensor([6, 4])), postnet(x[1:, :4], torch.tensor([4]))
    >>> torch.allclose(batch[1, :4], alone[0], atol=1e-5)
    True
    """

    def __init__(
        self,
        *,
        num_mels: int,
        size: int = 512,
        num_convs: int = 5,
        kernel_size: int = 5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.size = size
        self.num_convs = num_convs
        self.kernel_size = kernel_size
        self.dropout = dropout
        sizes = [num_mels] + [size] * (num_convs - 1) + [num_mels]
        self.convs = nn.ModuleList(
            NormedConv(
                input_size=sizes[i],
                output_size=sizes[i + 1],
                kernel_size=kernel_size,
                gain="tanh" if i + 1 < num_convs else "linear",
            )
            for i in range(num_convs)
        )
        self.drop = Dropout(dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Corrections ``(B, T, num_mels)`` of frames, zero in the padding."""
        if not self.num_convs:
            return torch.zeros_like(frames)
        x = mask_padding(frames, lengths)
        for index, conv in enumerate(self.convs):
            x = conv(x, lengths)
            x = self.drop(x.tanh() if index + 1 < self.num_convs else x)
        return x
