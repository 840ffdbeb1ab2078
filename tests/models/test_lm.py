"""Language models: teacher forcing, stepping, scores."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.data.manifest import DataError
from speechkit.data.tokenizer import CharTokenizer
from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.models.lm import (
    LanguageModel,
    LSTMLanguageModel,
    TransformerLanguageModel,
)
from speechkit.nn.masking import length_mask
from speechkit.nn.stepping import as_sentences, select_beams

TOKENIZER = CharTokenizer(symbols=list(" abcdefg"))
V = TOKENIZER.vocab_size
TEXTS = ["abc cab", "", "g", "de ad be ef dead beef", "face"]


def _lstm(**changes: Any) -> LSTMLanguageModel:
    arguments: dict[str, Any] = {"embed_dim": 12, "hidden_size": 16, "num_layers": 2, **changes}
    return LSTMLanguageModel(tokenizer=TOKENIZER, **arguments).eval()


def _transformer(**changes: Any) -> TransformerLanguageModel:
    arguments: dict[str, Any] = {
        "embed_dim": 16,
        "num_heads": 2,
        "num_layers": 2,
        "feedforward_size": 32,
        **changes,
    }
    return TransformerLanguageModel(tokenizer=TOKENIZER, **arguments).eval()


MODELS = {
    "lstm": _lstm,
    "lstm_tied": lambda: _lstm(embed_dim=16, tie_embeddings=True),
    "transformer": _transformer,
    "transformer_tied": lambda: _transformer(tie_embeddings=True, pre_norm=False),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    lm = request.param()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return lm


@torch.no_grad()
def test_stepping_equals_teacher_forcing(model: LanguageModel) -> None:
    fixed, state = model.start(2, torch.device("cpu"))
    state = select_beams(state, torch.zeros(2, 3, dtype=torch.int64))
    prefixes = torch.zeros(2, 3, 0, dtype=torch.int64)
    scores: list[Tensor] = []
    for step in range(9):
        tokens = torch.randint(V, (2, 3)) * (step > 0)
        out = model.step(tokens, fixed, state)
        assert out.attention is None
        prefixes = torch.cat([prefixes, tokens.unsqueeze(2)], dim=2)
        parents = torch.randint(3, (2, 3))
        prefixes, scores, state = select_beams(
            (prefixes, [*scores, out.log_probs], out.state), parents
        )
    logits = model(prefixes.flatten(0, 1), torch.full((6,), 9))
    stepped = torch.stack(scores, dim=2).flatten(0, 1)
    torch.testing.assert_close(stepped, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_later_token_changes_nothing_earlier(model: LanguageModel) -> None:
    tokens = torch.randint(V, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (tokens[:, 5:] + 1) % V
    out, other = (model(t, torch.full((2,), 8)) for t in (tokens, changed))
    torch.testing.assert_close(out[:, :5], other[:, :5], atol=1e-6, rtol=1e-6)
    assert (out[:, 5:] - other[:, 5:]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_padding_changes_nothing(model: LanguageModel) -> None:
    tokens, lengths = torch.randint(V, (3, 7)), torch.tensor([7, 2, 4])
    tokens[~length_mask(lengths, 7)] = -100
    out = model(tokens, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(tokens[i : i + 1, :length], lengths[i : i + 1])[0]
        torch.testing.assert_close(out[i, :length], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_score_is_the_sum_by_hand_in_every_batch_size(model: LanguageModel) -> None:
    wanted = []
    for text in TEXTS:
        ids = TOKENIZER.encode(text)
        fixed, state = model.start(1, torch.device("cpu"))
        total = 0.0
        for token, following in zip([0, *ids], [*ids, 0]):
            log_probs, state, _ = model.step(torch.tensor([[token]]), fixed, state)
            total += float(log_probs[0, 0, following])
        wanted.append(total)
    for batch_size in (1, 2, 64):
        assert model.score(TEXTS, batch_size=batch_size) == pytest.approx(wanted, abs=1e-4)
    assert model.score([]) == []


def test_probabilities_of_all_texts_sum_to_less_than_one_and_approach_it() -> None:
    model = LSTMLanguageModel(
        tokenizer=CharTokenizer(symbols=["a", "b"]), embed_dim=4, hidden_size=4, num_layers=1
    )
    texts, mass = [""], []
    for _ in range(7):
        mass.append(math.fsum(map(math.exp, model.score(texts))))
        texts = [text + letter for text in texts for letter in "ab"]
    assert 0.8 < sum(mass) < 1.0


def test_perplexity_counts_tokens_words_and_ends(model: LanguageModel) -> None:
    found = model.perplexity(TEXTS)
    assert found.log_prob == pytest.approx(math.fsum(model.score(TEXTS)))
    assert found.num_tokens == sum(map(len, TEXTS)) + 5
    assert found.num_words == 2 + 0 + 1 + 6 + 1 + 5
    assert found.per_token == pytest.approx(math.exp(-found.log_prob / found.num_tokens))
    assert found.per_word == pytest.approx(math.exp(-found.log_prob / found.num_words))


def test_scoring_is_done_in_evaluation_and_leaves_the_mode() -> None:
    model = _lstm(dropout=0.5).train()
    assert model.score(TEXTS) == model.score(TEXTS)
    assert model.training


@pytest.mark.parametrize(
    "make",
    [lambda: _lstm(num_layers=1, hidden_size=32), lambda: _transformer(num_layers=1)],
    ids=["lstm", "transformer"],
)
def test_learns_a_tiny_text(make: Callable[[], LanguageModel]) -> None:
    model = make().train()
    texts = ["abc cab", "face", "dead beef"]
    rows = [torch.tensor(TOKENIZER.encode(text)) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    inputs, targets, lengths = as_sentences(tokens, lengths)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    before = model.perplexity(texts).per_token
    for _ in range(60):
        loss = sequence_cross_entropy(model(inputs, lengths), targets, lengths).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Only the first letter of each is a matter of chance: one of three.
    scores = model.score(texts)
    assert before > 6
    assert scores == pytest.approx([-math.log(3)] * 3, abs=0.3)
    assert model.score(["fade"])[0] < min(scores) - 3


def test_a_model_folder_gives_it_back(model: LanguageModel, tmp_path: Path) -> None:
    speechkit.save(model, tmp_path / "model")
    loaded = speechkit.load(tmp_path / "model")
    assert loaded.score(TEXTS) == model.score(TEXTS)
    assert loaded.tokenizer.pieces == TOKENIZER.pieces
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_new_vocabulary_needs_new_vocabulary_parts_only(model: LanguageModel) -> None:
    state = model.state_dict()
    arguments = inspect.signature(type(model).__init__).parameters.keys() - {"self", "tokenizer"}
    new = type(model)(
        tokenizer=CharTokenizer(symbols=list("xyz")),
        **{name: getattr(model, name) for name in arguments},
    )
    report = speechkit.pretrained.load_state(new, state, reinit=model.vocabulary_parts)
    assert {name.rsplit(".", 1)[0] for name in report.fresh} == set(model.vocabulary_parts)
    assert len(new.score(["xyzzy"])) == 1


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="embed_dim and hidden_size alike, not 12 and 16"):
        _lstm(tie_embeddings=True)
    model = _lstm()
    with pytest.raises(TypeError, match="sequence of strings, got one: 'abc'"):
        model.score("abc")
    with pytest.raises(ValueError, match="perplexity of no text"):
        model.perplexity([])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.score(["a"], batch_size=0)
    with pytest.raises(DataError, match="'z'"):
        model.score(["abz"])
