"""Language models: the probability of a text, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.nn.dropout import Dropout
from speechkit.nn.masking import length_mask
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stepping import END, Start, StepOutput, as_sentences
from speechkit.nn.token_cache import TokenState
from speechkit.nn.transformer import Activation
from speechkit.nn.transformer_decoder import CausalTransformer


class Perplexity(NamedTuple):
    """How well a model predicts texts.

    Attributes
    ----------
    per_token : float
        ``exp(-log_prob / num_tokens)``; it depends on the tokenizer.
    per_word : float
        ``exp(-log_prob / num_words)``: comparable between tokenizers.
    log_prob : float
        Natural logarithm of the probability of all texts.
    num_tokens, num_words : int
        Labels, and words between spaces; the end of each text counts as one of both.
    """

    per_token: float
    per_word: float
    log_prob: float
    num_tokens: int
    num_words: int


class LanguageModel(nn.Module):
    """What language models over a tokenizer's labels have in common.

    A subclass has ``forward(tokens, token_lengths)``, ``start`` and ``step``, as described in
    `speechkit.nn.stepping`. Label 0, the blank of CTC, begins and ends a text.

    Parameters
    ----------
    tokenizer : object
        With ``vocab_size`` and ``encode``.
    """

    def __init__(self, *, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.vocab_size = int(tokenizer.vocab_size)

    def score(self, texts: Sequence[str], *, batch_size: int = 64) -> list[float]:
        """Natural logarithm of the probability of each text, its end included.

        Parameters
        ----------
        texts : sequence of str
            Made of the tokenizer's characters.
        batch_size : int
            Texts that are scored at once; those of like length go together.

        Raises
        ------
        TypeError
            If ``texts`` is one string.
        DataError
            If a text has characters that the tokenizer does not know.
        """
        return self._score(self._encode(texts), batch_size)

    def perplexity(self, texts: Sequence[str], *, batch_size: int = 64) -> Perplexity:
        """Perplexity of some texts, per token and per word, the end of each text included.

        Raises
        ------
        ValueError
            If there is no text.
        """
        labels = self._encode(texts)
        if not labels:
            raise ValueError("perplexity of no text: give at least one")
        log_prob = math.fsum(self._score(labels, batch_size))
        num_tokens = sum(len(ids) + 1 for ids in labels)
        num_words = sum(len(text.split()) + 1 for text in texts)
        per_token, per_word = (_exp(-log_prob / count) for count in (num_tokens, num_words))
        return Perplexity(per_token, per_word, log_prob, num_tokens, num_words)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of strings, got one: {texts[:40]!r}")
        return [self.tokenizer.encode(text) for text in texts]

    def _score(self, labels: list[list[int]], batch_size: int) -> list[float]:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = sorted(range(len(labels)), key=lambda i: len(labels[i]))
        device = next(self.parameters()).device
        scores = [0.0] * len(labels)
        with self._evaluation():
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                rows = [torch.tensor(labels[i], dtype=torch.int64) for i in chosen]
                lengths = torch.tensor([len(row) for row in rows], device=device)
                tokens = pad_sequence(rows, batch_first=True, padding_value=END).to(device)
                inputs, targets, lengths = as_sentences(tokens, lengths)
                losses = sequence_cross_entropy(self(inputs, lengths), targets, lengths)
                for i, loss in zip(chosen, losses.tolist()):
                    scores[i] = -loss
        return scores

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


class LSTMState(NamedTuple):
    """State of an LSTM's prefixes: for each layer hidden values and cells, ``(B, K, H)``."""

    hidden: tuple[Tensor, ...]
    cells: tuple[Tensor, ...]


class LSTMLanguageModel(LanguageModel):
    """LSTM layers over embedded tokens.

    Mikolov et al. 2010, "Recurrent neural network based language model"; Sundermeyer et al.
    2012, "LSTM neural networks for language modeling".

    Parameters
    ----------
    tokenizer : object
        Such as `speechkit.data.tokenizer.CharTokenizer`.
    embed_dim, hidden_size, num_layers : int
        Features of a token, units of a layer, layers.
    dropout : float
        Probability of dropping a value of the embeddings, between layers, before the output.
    tie_embeddings : bool
        Whether the output layer's weight is the embedding (Press and Wolf 2017).

    Raises
    ------
    ValueError
        If the embeddings are tied and ``embed_dim`` is not ``hidden_size``.

    Examples
    --------
    >>> from speechkit.data.tokenizer import CharTokenizer
    >>> tokenizer = CharTokenizer(symbols=["a", "b"])
    >>> model = LSTMLanguageModel(tokenizer=tokenizer, embed_dim=8, hidden_size=16, num_layers=1)
    >>> model(torch.tensor([[0, 1, 2]]), torch.tensor([3])).shape
    torch.Size([1, 3, 3])
    >>> len(model.score(["ab", "", "abba"]))
    3
    """

    vocabulary_parts = ("embedding", "output")
    """Parts whose inputs or outputs mean the tokenizer's labels."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        embed_dim: int,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__(tokenizer=tokenizer)
        if tie_embeddings and embed_dim != hidden_size:
            raise ValueError(
                f"tied embeddings need embed_dim and hidden_size alike, not {embed_dim} and "
                f"{hidden_size}"
            )
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.tie_embeddings = tie_embeddings
        self.embedding = nn.Embedding(self.vocab_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # Zaremba et al. 2014
        self.layers = RecurrentEncoder(
            input_size=embed_dim,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=False,
            dropout=dropout,
        )
        self.output = nn.Linear(hidden_size, self.vocab_size)
        if tie_embeddings:
            self.output.weight = self.embedding.weight
        self.drop = Dropout(dropout)

    def forward(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Logits ``(B, U, V)`` of what follows each prefix of ``tokens`` ``(B, U)``."""
        valid = length_mask(token_lengths, tokens.shape[1])
        x = self.drop(self.embedding(tokens.masked_fill(~valid, END)))
        return self.output(self.drop(self.layers(x, token_lengths).data))

    def start(self, batch_size: int, device: torch.device) -> Start:
        """Give ``batch_size`` empty prefixes, state axes ``(B, 1, ...)``."""
        shape = (batch_size, 1, self.hidden_size)
        zeros = torch.zeros(shape, dtype=self.embedding.weight.dtype, device=device)
        layers = (zeros,) * self.num_layers
        return Start(None, LSTMState(layers, layers))

    def step(self, tokens: Tensor, fixed: None, state: LSTMState) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows."""
        x = self.drop(self.embedding(tokens.flatten()))  # (B * K, E)
        hidden, cells = [], []
        # A cell, with the layer's weights: one step of a layer costs up to three times as much.
        for i, layer in enumerate(self.layers.ahead):
            past = (state.hidden[i].flatten(0, 1), state.cells[i].flatten(0, 1))
            weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
            h, c = torch.lstm_cell(x, past, *weights)  # type: ignore[arg-type]
            hidden.append(h.view(*tokens.shape, -1))
            cells.append(c.view(*tokens.shape, -1))
            x = self.drop(h)
        log_probs = self.output(x).float().log_softmax(dim=-1).view(*tokens.shape, -1)
        return StepOutput(log_probs, LSTMState(tuple(hidden), tuple(cells)))


class TransformerLanguageModel(LanguageModel):
    """Causal Transformer layers over embedded tokens.

    Irie et al. 2019, "Language modeling with deep Transformers".

    Parameters
    ----------
    tokenizer : object
        Such as `speechkit.data.tokenizer.CharTokenizer`.
    embed_dim, num_heads, num_layers, feedforward_size : int
        Features, attention heads, layers, hidden features of the feed-forward blocks.
    dropout : float
        Probability of dropping embeddings, attention weights, hidden values, blocks' outputs.
    pre_norm : bool
        Whether norms come before the blocks; then a last norm follows the layers.
    activation : {"relu", "gelu", "silu"}
        Of the feed-forward blocks.
    tie_embeddings : bool
        Whether the output layer's weight is the embedding (Press and Wolf 2017).

    Raises
    ------
    ValueError
        If there is no layer or the heads do not divide the features.

    Examples
    --------
    >>> from speechkit.data.tokenizer import CharTokenizer
    >>> model = TransformerLanguageModel(
    ...     tokenizer=CharTokenizer(symbols=["a", "b"]),
    ...     embed_dim=8, num_heads=2, num_layers=1, feedforward_size=16)
    >>> fixed, state = model.start(1, torch.device("cpu"))
    >>> log_probs = model.step(torch.tensor([[0]]), fixed, state).log_probs  # of the first token
    >>> log_probs.shape, round(log_probs.exp().sum().item(), 4)
    (torch.Size([1, 1, 3]), 1.0)
    """

    vocabulary_parts = ("network.embedding", "network.output")
    """Parts whose inputs or outputs mean the tokenizer's labels."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        feedforward_size: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        activation: Activation = "relu",
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__(tokenizer=tokenizer)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward_size = feedforward_size
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.activation = activation
        self.tie_embeddings = tie_embeddings
        self.network = CausalTransformer(
            vocab_size=self.vocab_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            feedforward_size=feedforward_size,
            dropout=dropout,
            pre_norm=pre_norm,
            activation=activation,
            tie_embeddings=tie_embeddings,
        )

    def forward(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Logits ``(B, U, V)`` of what follows each prefix of ``tokens`` ``(B, U)``."""
        return self.network(tokens, token_lengths)

    def start(self, batch_size: int, device: torch.device) -> Start:
        """Give ``batch_size`` empty prefixes, state axes ``(B, 1, ...)``."""
        return self.network.start(batch_size, device)

    def step(self, tokens: Tensor, fixed: None, state: TokenState) -> StepOutput:
        """Append ``tokens`` ``(B, K)`` to the prefixes and score what follows."""
        return self.network.step(tokens, fixed, state)
