"""Speaker models and losses against SpeechBrain's own modules, with the same random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.convert.speaker import convert_ecapa, convert_xvector, load_ecapa, load_xvector
from speechkit.data.errors import DataError
from speechkit.losses.speaker import SpeakerLoss
from speechkit.models.speaker import SpeakerEncoder

SIZES = {"channels": [16, 16, 16, 16, 24], "attention_channels": 10, "res2net_scale": 4}


def _speechbrain(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"speechbrain.{module}")


def _shake(module: nn.Module) -> nn.Module:
    """Give norms, too, weights and running statistics that are not 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.5 * torch.rand_like(value))
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return module


def _ecapa(**changes: Any) -> nn.Module:
    peer = _speechbrain("lobes.models.ECAPA_TDNN")
    return _shake(peer.ECAPA_TDNN(20, **{**SIZES, "lin_neurons": 12, "se_channels": 6, **changes}))


def _xvector(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    peer = _speechbrain("lobes.models.Xvector")
    theirs = peer.Xvector(in_channels=20, tdnn_channels=[8, 8, 8, 8, 16], lin_neurons=12)
    # Theirs adds random numbers to the means.
    for module in theirs.modules():
        if hasattr(module, "_get_gauss_noise"):
            monkeypatch.setattr(module, "_get_gauss_noise", lambda size, device: torch.zeros(size))
    return _shake(theirs)


def _load(theirs: nn.Module, folder: Path, load: Any) -> SpeakerEncoder:
    torch.save(theirs.state_dict(), folder / "embedding_model.ckpt")
    return load(folder)


def _embed(model: SpeakerEncoder, x: Tensor, lengths: Tensor) -> Tensor:
    return model.projection(model.pooling(*model.encoder(x, lengths)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("context", [True, False])
def test_ecapa(tmp_path: Path, context: bool, training: bool) -> None:
    """Embeddings and gradients; in training mode, with the batch's statistics."""
    theirs = _ecapa(global_context=context).train(training)
    ours = _load(theirs, tmp_path, load_ecapa).train(training)
    x = torch.randn(3, 40, 20, requires_grad=True)
    got, want = _embed(ours, x, torch.full((3,), 40)), theirs(x).squeeze(1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)


def test_xvector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _xvector(monkeypatch).eval()
    ours = _load(theirs, tmp_path, load_xvector)
    x = torch.randn(3, 40, 20)
    got = _embed(ours, x, torch.full((3,), 40))
    torch.testing.assert_close(got, theirs(x).squeeze(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ecapa", "xvector"])
def test_from_the_waveform_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item of a padded batch gives what all of SpeechBrain's pipeline gives it alone."""
    theirs = (_ecapa() if kind == "ecapa" else _xvector(monkeypatch)).eval()
    ours = _load(theirs, tmp_path, load_ecapa if kind == "ecapa" else load_xvector)
    features = _speechbrain("lobes.features").Fbank(n_mels=20)
    norm = _speechbrain("processing.features").InputNormalization(
        norm_type="sentence", std_norm=False
    )
    lengths = torch.tensor([12000, 7000])
    x = 0.1 * torch.randn(2, 12000)
    with torch.no_grad():
        got = ours(x.where(torch.arange(12000) < lengths[:, None], float("nan")), lengths)
        for row, wave, length in zip(got, x, lengths.tolist()):
            frames = norm(features(wave[None, :length]), torch.ones(1))
            want = theirs(frames).flatten()
            torch.testing.assert_close(row, want, atol=1e-4, rtol=1e-4)


def test_published_sizes_convert() -> None:
    """As the published files: ECAPA with 1024 channels and 3072 after them, x-vector with 24."""
    theirs = _speechbrain("lobes.models.ECAPA_TDNN").ECAPA_TDNN(
        80, channels=[1024] * 4 + [3072], lin_neurons=192
    )
    state, settings = convert_ecapa(theirs.state_dict())
    assert settings["encoder"]["channels"] == 1024
    assert settings["encoder"]["scale"] == 8
    assert settings["pooling"] == {"input_size": 3072, "attention_size": 128, "context": True}
    learned = [v for k, v in state.items() if "running" not in k]
    assert sum(v.numel() for v in learned) == sum(p.numel() for p in theirs.parameters())
    theirs = _speechbrain("lobes.models.Xvector").Xvector(in_channels=24)
    state, settings = convert_xvector(theirs.state_dict())
    assert settings["encoder"]["kernel_sizes"] == (5, 3, 3, 1, 1)
    assert settings["projection"] == {"input_size": 3000, "embed_dim": 512}
    learned = [v for k, v in state.items() if "running" not in k]
    assert sum(v.numel() for v in learned) == sum(p.numel() for p in theirs.parameters())


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        load_ecapa(tmp_path)
    theirs = _ecapa().state_dict()
    for change, message in (
        ({"fc.conv.weight": None}, "no weight for 'projection.linear.weight'"),
        ({"mfa.conv.conv.bias": None}, "is not whole.*encoder.aggregate.conv.bias"),
        ({"classifier.weight": torch.zeros(1)}, "does not have.*classifier.weight"),
    ):
        state = {k: v for k, v in {**theirs, **change}.items() if v is not None}
        torch.save(state, tmp_path / "embedding_model.ckpt")
        with pytest.raises(DataError, match=message):
            load_ecapa(tmp_path)
    torch.save({"a": object}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(DataError, match="tensors"):
        load_xvector(tmp_path)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("kind", ["am", "aam"])
def test_margins(kind: str, margin: float) -> None:
    """Losses and gradients, on all sides of the angle where the margin would pass 180 degrees."""
    losses = _speechbrain("nnet.losses")
    peer = losses.AngularMargin if kind == "am" else losses.AdditiveAngularMargin
    theirs = losses.LogSoftmaxWrapper(peer(margin=margin, scale=30.0))
    ours = SpeakerLoss(embed_dim=4, num_speakers=5, kind=kind, margin=margin)
    classifier = _speechbrain("lobes.models.ECAPA_TDNN").Classifier(4, lin_neurons=4, out_neurons=5)
    classifier.weight = ours.weight
    speakers = torch.arange(40) % 5
    x = torch.randn(40, 4)
    x[:5] = -3.0 * ours.weight.detach() + 0.05 * x[:5]  # angles near 180 degrees
    x.requires_grad_()
    got = ours(x, speakers).mean()
    want = theirs(classifier(x.unsqueeze(1)), speakers.unsqueeze(1))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    wanted = [x, ours.weight]
    for a, b in zip(torch.autograd.grad(got, wanted), torch.autograd.grad(want, wanted)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
