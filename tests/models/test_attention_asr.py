"""Encoder-decoder recognisers: outputs, decoding, model folder, the fit of their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import speechkit
from speechkit.data.tokenizer import CharTokenizer
from speechkit.decoding.beam_search import BeamSearch
from speechkit.decoding.ctc import PrefixBeamSearch, greedy
from speechkit.features.spectrum import LogMel
from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.models.asr import AttentionRecognizer
from speechkit.models.lm import LSTMLanguageModel
from speechkit.nn.contexts import LocationContext
from speechkit.nn.conv import ConvSubsampling
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.rnn_decoder import RNNDecoder
from speechkit.nn.stack import Stack
from speechkit.nn.transformer_decoder import TransformerDecoder

TOKENIZER = CharTokenizer(symbols=["a", "b", "c", "d", " "])
VOCAB = TOKENIZER.vocab_size


def _gru() -> RNNDecoder:
    context = LocationContext(memory_size=16, query_size=12, attention_size=8, kernel_size=5)
    return RNNDecoder(
        vocab_size=VOCAB, memory_size=16, context=context, embed_dim=6, hidden_size=12
    )


def _transformer() -> TransformerDecoder:
    return TransformerDecoder(
        vocab_size=VOCAB, memory_size=16, embed_dim=16, num_heads=2, num_layers=2,
        feedforward_size=24,
    )  # fmt: skip


def _model(decoder: Any, **changes: Any) -> AttentionRecognizer:
    encoder = Stack(
        [
            ConvSubsampling(input_size=12, channels=[4, 4], strides=[2, 2], output_size=10),
            RecurrentEncoder(input_size=10, hidden_size=8, num_layers=1),
        ]
    )
    features = LogMel(sample_rate=8000, n_fft=200, num_mels=12)
    arguments: dict[str, Any] = {
        "features": features, "encoder": encoder, "decoder": decoder, "tokenizer": TOKENIZER,
        "sample_rate": 8000, **changes,
    }  # fmt: skip
    return AttentionRecognizer(**arguments)


@pytest.fixture(params=[_gru, _transformer], ids=["gru", "transformer"])
def model(request: pytest.FixtureRequest) -> AttentionRecognizer:
    torch.manual_seed(1)
    return _model(request.param()).eval()


def test_a_padded_item_gives_what_it_gives_alone(model: AttentionRecognizer) -> None:
    waveforms, lengths = torch.randn(2, 6000), torch.tensor([6000, 3500])
    tokens, sizes = torch.tensor([[1, 2, 3, 4], [2, 5, 0, 0]]), torch.tensor([4, 2])
    waveforms[1, 3500:] = float("nan")
    both = model(waveforms, lengths, tokens=tokens, token_lengths=sizes)
    alone = model(waveforms[1:, :3500], lengths[1:], tokens=tokens[1:, :2], token_lengths=sizes[1:])
    frames = int(alone.lengths)
    assert int(both.lengths[1]) == frames
    torch.testing.assert_close(both.log_probs[1, :frames], alone.log_probs[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        both.decoded.logits[1, :3], alone.decoded.logits[0], atol=1e-4, rtol=0
    )


def test_each_search_is_asked_as_it_wants(model: AttentionRecognizer) -> None:
    output = model(torch.randn(2, 6000), torch.tensor([6000, 4000]))
    assert output.decoded is None
    assert model.decode(output, greedy) == [
        [hypothesis] for hypothesis in greedy(output.log_probs, output.lengths)
    ]
    prefixes = model.decode(output, PrefixBeamSearch(beam_size=3, nbest=2))
    assert [len(n_best) for n_best in prefixes] == [2, 2]
    by_default = model.decode(output)
    one = model.decode(output, BeamSearch(beam_size=1))
    assert [n[0].tokens for n in by_default] == [n[0].tokens for n in one]
    # The score is what teacher forcing gives the same labels.
    best = one[0][0]
    if best.stopped:
        tokens = torch.tensor([best.tokens])
        sizes = torch.tensor([len(best.tokens)])
        forced = model.decoder(
            torch.nn.functional.pad(tokens, (1, 0)),
            sizes + 1,
            torch.nn.functional.pad(tokens, (1, 0)),
            sizes + 1,
            output.memory[:1],
            output.lengths[:1],
            output.lengths[:1],
        )
        targets = torch.nn.functional.pad(tokens, (0, 1))
        loss = sequence_cross_entropy(forced.logits, targets, sizes + 1)
        assert best.score == pytest.approx(-float(loss), abs=1e-3)


def test_without_ctc_a_search_of_posteriors_is_refused() -> None:
    model = _model(_gru(), ctc=False).eval()
    output = model(torch.randn(1, 4000), torch.tensor([4000]))
    assert output.log_probs is None
    assert model.beam_search(4).ctc_weight == 0.0
    with pytest.raises(ValueError, match="this recogniser has none: take a BeamSearch"):
        model.decode(output, PrefixBeamSearch())


def test_a_search_that_does_not_fit_is_refused() -> None:
    foreign = LSTMLanguageModel(
        tokenizer=CharTokenizer(symbols=["b", "a", "c", "d", " "]), embed_dim=4, hidden_size=4,
        num_layers=1,
    )  # fmt: skip
    with_ctc, without = _model(_gru()), _model(_gru(), ctc=False)
    with_ctc.check_search(BeamSearch(beam_size=6, ctc_weight=0.5))
    with_ctc.check_search(PrefixBeamSearch())
    for model, search, message in (
        (with_ctc, BeamSearch(beam_size=7), "beam_size=7 is wider than the vocabulary of 6"),
        (with_ctc, BeamSearch(beam_size=2, lm=foreign, lm_weight=0.1), "label 1 is 'a' in the rec"),
        (without, BeamSearch(beam_size=2, ctc_weight=0.5), "this recogniser has no CTC head"),
    ):
        with pytest.raises(ValueError, match=message):
            model.check_search(search)


@pytest.mark.parametrize("make", [_gru, _transformer])
def test_learns_one_utterance_and_opens_again(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _model(make())
    waveform, lengths = torch.randn(1, 6000), torch.tensor([6000])
    text = "ab ca dab"
    tokens = torch.tensor([TOKENIZER.encode(text)])
    sizes = torch.tensor([len(text)])
    targets = torch.nn.functional.pad(tokens, (0, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        output = model(waveform, lengths, tokens=tokens, token_lengths=sizes)
        loss = sequence_cross_entropy(output.decoded.logits, targets, sizes + 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model.eval()(waveform, lengths)
    speechkit.save(model, tmp_path / "model")
    again = speechkit.load(tmp_path / "model")
    for search in (None, BeamSearch(beam_size=3)):
        n_best = again.decode(again(waveform, lengths), search)[0]
        assert TOKENIZER.decode(n_best[0].tokens) == text, search
    transcript = again.transcribe(waveform[0], 8000)
    assert transcript.text == text
    starts = [word.start for word in transcript.words]
    assert starts == sorted(starts)
    assert transcript.words[-1].end <= transcript.duration
    labels = greedy(output.log_probs, output.lengths)[0].tokens
    heard = again.transcribe(waveform[0], 8000, search=greedy)
    assert heard.text == " ".join(TOKENIZER.decode(labels).split())


def test_windows_are_decoded_one_by_one_and_words_stand_once() -> None:
    """A decoder that spells what it hears: label 1 for each second of tone, at its place."""

    class Seconds(AttentionRecognizer):
        def decode(self, output: Any, search: Any = None) -> list[Any]:
            found = []
            for memory, size in zip(output.memory, output.lengths.tolist()):
                loud = memory[:size, 0] > 0.5
                rises = (loud[1:] & ~loud[:-1]).nonzero().flatten().tolist()
                starts = ([0] if bool(loud[0]) else []) + [rise + 1 for rise in rises]
                frames = [frame for start in starts for frame in (start, start + 20)]
                tokens = [1, 5] * len(starts)
                from speechkit.decoding.hypothesis import Hypothesis

                ends = [frame + 20 for frame in frames]
                found.append([Hypothesis(tokens, 0.0, frames, ends, [1.0] * len(tokens))])
            return found

        def encode(self, waveforms: Any, lengths: Any, **_: Any) -> Any:
            from speechkit.nn.masking import Padded

            frames = waveforms.unfold(1, 200, 200).abs().amax(dim=-1)
            return Padded(frames.unsqueeze(-1).expand(-1, -1, 16), lengths // 200)

        def num_frames(self, lengths: Any) -> Any:
            return lengths // 200

    model = _model(_gru())
    arguments = {name: getattr(model, name) for name in ("features", "encoder", "decoder")}
    heard = Seconds(**arguments, tokenizer=TOKENIZER, sample_rate=8000)
    audio = torch.zeros(8000 * 60)
    for second in range(0, 60, 3):  # tones of one second, every three
        begin = 8000 * second + 1600
        audio[begin : begin + 8000] = torch.sin(torch.arange(8000) / 3)
    transcript = heard.transcribe(audio, 8000, window=11.0, overlap=4.0)
    assert [round(word.start, 1) for word in transcript.words] == [n + 0.2 for n in range(0, 60, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": CharTokenizer(symbols=["a"])}, "vocab_size is 6, but the tokenizer has 2"),
        ({"encoder": RecurrentEncoder(input_size=12, hidden_size=4, num_layers=1)},
         "memory_size is 16, but the encoder gives 8"),
        ({"sample_rate": 16000}, "the features are for 8000 Hz, the recogniser for 16000 Hz"),
    ],
)  # fmt: skip
def test_refuses_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model(_gru(), **changes)
