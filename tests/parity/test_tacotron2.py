"""Our Tacotron 2 against SpeechBrain's, with the same random weights and no dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.convert.tacotron2 import convert_tacotron2, load_tacotron2
from speechkit.data.errors import DataError
from speechkit.losses.tacotron import guided_attention
from speechkit.models.tacotron2 import Tacotron2

SYMBOLS, MELS = 12, 6
LENGTHS = torch.tensor([9, 9, 5])
FRAMES = torch.tensor([14, 8, 11])


def _pair() -> tuple[Any, Tacotron2]:
    peer = pytest.importorskip("speechbrain.lobes.models.Tacotron2")
    torch.manual_seed(0)
    theirs = peer.Tacotron2(
        mask_padding=False,
        n_mel_channels=MELS,
        n_symbols=SYMBOLS,
        symbols_embedding_dim=16,
        encoder_kernel_size=3,
        encoder_n_convolutions=2,
        encoder_embedding_dim=16,
        attention_rnn_dim=20,
        attention_dim=10,
        attention_location_n_filters=4,
        attention_location_kernel_size=7,
        n_frames_per_step=1,
        decoder_rnn_dim=18,
        prenet_dim=8,
        max_decoder_steps=15,
        gate_threshold=0.5,
        p_attention_dropout=0.0,
        p_decoder_dropout=0.0,
        postnet_embedding_dim=14,
        postnet_kernel_size=5,
        postnet_n_convolutions=3,
        decoder_no_early_stopping=False,
    ).eval()
    theirs.decoder.prenet.dropout = 0.0
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in theirs.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                buffer.normal_()
    state, settings = convert_tacotron2(theirs.state_dict())
    ours = Tacotron2(
        **settings, prenet_dropout=0.0, attention_dropout=0.0, decoder_dropout=0.0
    ).eval()
    ours.load_state_dict(state)
    return theirs, ours


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, SYMBOLS, (3, 9), generator=generator)
    return tokens, torch.randn(3, 14, MELS, generator=generator)


def test_known_frames_give_the_same_and_the_same_gradients() -> None:
    theirs, ours = _pair()
    tokens, mels = _batch()
    # Their convolutions see the padding, so that only full items can be compared.
    symbols, full = torch.full((3,), 9), torch.full((3,), 14)
    got = ours(tokens, symbols, mels, full)
    inputs = (tokens, symbols, mels.transpose(1, 2), None, full)
    coarse, mel, stop, alignment = theirs(inputs)
    assert mel.abs().max() > 0.5
    for mine, their in (
        (got.coarse, coarse.transpose(1, 2)),
        (got.mel, mel.transpose(1, 2)),
        (got.stop_logits, stop),
        (got.alignment, alignment),
    ):
        torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)
    (got.mel.square().mean() + got.stop_logits.square().mean()).backward()
    (mel.square().mean() + stop.square().mean()).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, grad in convert_tacotron2({**theirs.state_dict(), **grads}).state.items():
        if "running" not in name:
            found = ours.get_parameter(name).grad
            torch.testing.assert_close(found, grad, atol=1e-4, rtol=1e-3, msg=name)


def test_speaking_gives_the_same() -> None:
    theirs, ours = _pair()
    tokens, _ = _batch()
    with torch.no_grad():
        theirs.decoder.gate_layer.linear_layer.bias.fill_(-50.0)
        ours.decoder.stop_output.bias.fill_(-50.0)
        for item, length in enumerate(LENGTHS.tolist()):
            text = tokens[item : item + 1, :length]
            got = ours.generate(text, LENGTHS[item : item + 1], max_frames=15)
            mel, _, alignment = theirs.infer(text, LENGTHS[item : item + 1])
            torch.testing.assert_close(got.mel, mel.transpose(1, 2), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got.alignment[0], alignment[0], atol=1e-4, rtol=1e-4)
            assert not got.stopped.any()


def test_speaking_stops_at_the_same_step() -> None:
    theirs, ours = _pair()
    tokens, _ = _batch()
    stops = []
    with torch.no_grad():
        for bias in (-1.0, -0.5, 0.0, 0.5):
            theirs.decoder.gate_layer.linear_layer.bias.fill_(bias)
            ours.decoder.stop_output.bias.fill_(bias)
            got = ours.generate(tokens[:1], LENGTHS[:1], max_frames=15)
            _, lengths, _ = theirs.infer(tokens[:1], LENGTHS[:1])
            # Theirs does not count the frame that says stop.
            assert got.lengths.item() == lengths.item() + int(got.stopped.item())
            stops.append(got.lengths.item())
    assert len(set(stops)) > 1


def test_guided_attention() -> None:
    peer = pytest.importorskip("speechbrain.nnet.loss.guidedattn_loss")
    alignment = torch.rand(3, 14, 9).softmax(dim=-1)
    want = peer.GuidedAttentionLoss(sigma=0.3)(alignment, LENGTHS, FRAMES)  # mean over all cells
    ours = guided_attention(alignment, FRAMES, LENGTHS, sigma=0.3)
    torch.testing.assert_close((ours * FRAMES).sum() / (3 * 14 * 9), want)


def _published(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    return path


def test_a_file_of_speechbrains_and_one_of_nvidias(tmp_path: Path) -> None:
    theirs, ours = _pair()
    weights = theirs.state_dict()
    tokens, mels = _batch()
    full = torch.full((3,), 14)
    nvidias = {f"module.{name}": value for name, value in weights.items()}
    for content in (weights, {"state_dict": nvidias, "iteration": 7, "learning_rate": 1e-3}):
        model = load_tacotron2(_published(tmp_path, content))
        assert not model.training
        assert model.num_symbols == SYMBOLS
        for name, tensor in ours.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert model(tokens, LENGTHS, mels, full).mel.shape == mels.shape


def test_half_precision_becomes_single() -> None:
    theirs, _ = _pair()
    state = convert_tacotron2({name: v.half() for name, v in theirs.state_dict().items()}).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_what_is_no_tacotron_is_refused(tmp_path: Path) -> None:
    theirs, _ = _pair()
    weights = theirs.state_dict()
    with pytest.raises(DataError, match=r"none.ckpt is missing"):
        load_tacotron2(tmp_path / "none.ckpt")
    with pytest.raises(DataError, match="something other than named tensors"):
        load_tacotron2(_published(tmp_path, {"state_dict": {"a": 1}}))
    with pytest.raises(DataError, match="not a file of tensors alone"):
        load_tacotron2(_published(tmp_path, Path("code")))
    with pytest.raises(DataError, match=r"model.ckpt: weights that a Tacotron 2 does not have"):
        load_tacotron2(_published(tmp_path, {**weights, "decoder.more": torch.zeros(1)}))
    whole = {name: v for name, v in weights.items() if "gate_layer" not in name}
    with pytest.raises(DataError, match=r"there are none: \['decoder.stop_output.bias', "):
        convert_tacotron2(whole)
    with pytest.raises(DataError, match="no weight that would be our encoder"):
        convert_tacotron2({})
    name = "decoder.decoder_rnn.bias_ih"
    with pytest.raises(DataError, match=r"for decoder.decoder_lstm.bias_ih is \(3,\), but"):
        convert_tacotron2({**weights, name: torch.zeros(3)})
    name = "decoder.linear_projection.linear_layer.weight"
    with pytest.raises(DataError, match="gives 2 frames a step"):
        convert_tacotron2({**weights, name: weights[name].repeat(2, 1)})
