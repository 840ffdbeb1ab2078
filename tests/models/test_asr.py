from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from speechkit.decoding.beam_search import BeamSearch
from speechkit.models.asr import CTCRecognizer
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.conv import ConvEncoder, ConvSubsampling
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.rnn import RecurrentEncoder
from speechkit.nn.stack import Stack

FRAME = 20
TOKENIZER = SimpleNamespace(vocab_size=11, pieces=["-", *"abcdefghij"])


class Frames(nn.Module):
    """Stands for a feature extractor: cuts the waveform into frames."""

    output_size = FRAME
    sample_rate = 8000

    def num_frames(self, lengths: Tensor) -> Tensor:
        return lengths // FRAME

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Padded:
        usable = waveforms.shape[1] // FRAME * FRAME
        return Padded(waveforms[:, :usable].unflatten(1, (-1, FRAME)), self.num_frames(lengths))


class Scale(nn.Module):
    """Stands for a normaliser."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return mask_padding(3 * x, lengths)


def _cnn_bilstm() -> nn.Module:
    conv = ConvEncoder(input_size=FRAME, channels=(16, 16), strides=(2, 2))
    return Stack([conv, RecurrentEncoder(input_size=16, hidden_size=8, num_layers=2)])


def _conformer() -> nn.Module:
    front = ConvSubsampling(input_size=FRAME, channels=(4, 4), strides=(2, 2), output_size=16)
    layers = ConformerEncoder(
        input_size=16,
        embed_dim=16,
        num_heads=2,
        num_layers=2,
        feedforward_size=32,
        kernel_size=7,
    )
    return Stack([front, layers])


def _recognizer(encoder: nn.Module, **changes: object) -> CTCRecognizer:
    arguments: dict = {
        "features": Frames(),
        "encoder": encoder,
        "tokenizer": TOKENIZER,
        "normalize": Scale(),
        "sample_rate": 8000,
        **changes,
    }
    return CTCRecognizer(**arguments)


@pytest.fixture(params=[_cnn_bilstm, _conformer], ids=["cnn_bilstm", "conformer"])
def model(request: pytest.FixtureRequest) -> CTCRecognizer:
    return _recognizer(request.param()).eval()


def test_gives_normalised_float32_log_probs(model: CTCRecognizer) -> None:
    out = model(torch.randn(2, 800), torch.tensor([800, 420]))
    assert out.log_probs.shape == (2, 10, 11)
    assert out.lengths.tolist() == [10, 6]
    torch.testing.assert_close(out.log_probs.exp().sum(-1), torch.ones(2, 10))


def test_padding_changes_nothing(model: CTCRecognizer) -> None:
    lengths = torch.tensor([1000, 640, 60])
    x = torch.randn(3, 1200)
    for row, length in zip(x, lengths):
        row[length:] = float("nan")
    out = model(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(x[i : i + 1, :length], lengths[i : i + 1])
        frames = int(alone.lengths)
        assert int(out.lengths[i]) == frames
        torch.testing.assert_close(
            out.log_probs[i, :frames], alone.log_probs[0, :frames], atol=1e-4, rtol=1e-4
        )


def test_num_frames_is_the_output_length(model: CTCRecognizer) -> None:
    for length in (20, 79, 80, 81, 333, 800):
        lengths = torch.tensor([length])
        out = model(torch.randn(1, length), lengths)
        assert (
            model.num_frames(lengths).tolist() == out.lengths.tolist() == [out.log_probs.shape[1]]
        )


def test_feature_transform_sees_normalised_features(model: CTCRecognizer) -> None:
    seen: list[Tensor] = []

    def transform(features: Tensor, lengths: Tensor) -> Tensor:
        seen.extend([features, lengths])
        return torch.zeros_like(features)

    x, lengths = torch.randn(2, 800), torch.tensor([800, 400])
    out = model(x, lengths, feature_transform=transform)
    torch.testing.assert_close(seen[0][0], 3 * x[0].view(40, FRAME))
    assert seen[1].tolist() == [40, 20]
    silent = model(torch.zeros_like(x), lengths)
    torch.testing.assert_close(out.log_probs, silent.log_probs)


def test_bfloat16_autocast_gives_float32_and_a_loss_that_trains(model: CTCRecognizer) -> None:
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(2, 800), torch.tensor([800, 600]))
    assert out.log_probs.dtype == torch.float32
    loss = nn.functional.ctc_loss(
        out.log_probs.transpose(0, 1),
        torch.tensor([[1, 2, 3], [4, 5, 0]]),
        out.lengths,
        torch.tensor([3, 2]),
    )
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_learns_one_utterance() -> None:
    torch.manual_seed(1)
    model = _recognizer(_cnn_bilstm())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x, lengths = torch.randn(1, 800), torch.tensor([800])
    for _ in range(80):
        out = model(x, lengths)
        loss = nn.functional.ctc_loss(
            out.log_probs.transpose(0, 1), torch.tensor([[1, 2, 3]]), out.lengths, torch.tensor([3])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_dropout_before_the_head_acts_in_training_only() -> None:
    model = _recognizer(_conformer(), dropout=0.5)
    x, lengths = torch.randn(1, 800), torch.tensor([800])
    assert not torch.equal(model(x, lengths).log_probs, model(x, lengths).log_probs)
    model.eval()
    assert torch.equal(model(x, lengths).log_probs, model(x, lengths).log_probs)


def test_arguments_are_attributes() -> None:
    encoder, normalize = _cnn_bilstm(), Scale()
    model = _recognizer(encoder, normalize=normalize, dropout=0.25)
    assert model.encoder is encoder
    assert model.normalize is normalize
    assert model.tokenizer is TOKENIZER
    assert (model.sample_rate, model.dropout) == (8000, 0.25)


def test_refuses_a_search_along_a_decoder() -> None:
    with pytest.raises(ValueError, match="this recogniser has none: take a PrefixBeamSearch"):
        _recognizer(_cnn_bilstm()).check_search(BeamSearch(beam_size=2))


def test_refuses_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="features are for 8000 Hz, the recogniser for 16000 Hz"):
        _recognizer(_cnn_bilstm(), sample_rate=16000)
    encoder = RecurrentEncoder(input_size=80, hidden_size=8, num_layers=1)
    with pytest.raises(ValueError, match="takes 80 features, but the features are 20"):
        _recognizer(encoder)
