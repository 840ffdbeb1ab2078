"""Speaker embeddings beside SpeechBrain's, enrolled speakers, and clustering of an hour.

ECAPA-TDNN at the size of SpeechBrain's published model (1,024 channels): embeddings of waveforms,
the log-mel of both sides included, and a training step on frames with the additive angular margin
over so many speakers (forward, loss, backward). Both sides get the same weights, and embeddings,
losses and gradients are compared before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

AREA = "speaker"
RATE = 16000
RATIO = 1.3
MARGIN, SCALE = 0.2, 30.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and of the inputs."""

    channels: int = 1024
    output_size: int = 3072
    attention: int = 128
    squeeze: int = 128
    mels: int = 80
    embed_dim: int = 192
    clips: int = 100
    items: int = 16
    seconds: float = 3.0
    speakers: int = 1000  # in training, and enrolled
    windows: int = 7200  # an hour at 0.5 s
    voices: int = 4


FULL = Sizes()
QUICK = Sizes(
    channels=16, output_size=24, attention=8, squeeze=8, mels=20, embed_dim=64, clips=6, items=4,
    seconds=0.5, speakers=20, windows=300, voices=3,
)  # fmt: skip


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the network, then what is done with embeddings."""
    theirs = build_speechbrain(sizes)
    ours = build_ours(sizes, theirs).to(bench.device)
    theirs = theirs and theirs.to(bench.device)
    yield measure_embeddings(bench, sizes, ours, theirs)
    yield measure_step(bench, sizes, ours, theirs)
    yield measure_scores(bench, sizes)
    yield measure_clustering(bench, sizes)


def measure_embeddings(bench: Bench, sizes: Sizes, ours: Any, theirs: Any) -> Measurement:
    """Measure embeddings of waveforms in batches."""
    noise = 0.1 * torch.randn(sizes.clips, int(RATE * sizes.seconds), generator=_generator())
    batches = noise.to(bench.device).split(sizes.items)
    embed, embed_theirs = embedder(ours), theirs and embedder_of_theirs(theirs, sizes)
    note, failed = "", False
    if theirs is not None:
        note = f"{_millions(ours)} parameters against {_millions(theirs)}"
        few = batches[0][:2]
        failed = not _close(embed(few), embed_theirs(few))
        note += "; the embeddings differ" if failed else ""
    return bench.compare(
        Contest(
            AREA,
            f"ECAPA {sizes.channels}, {sizes.clips} x {sizes.seconds:g} s by {sizes.items}",
            "speechbrain",
            lambda: [embed(batch) for batch in batches],
            theirs and (lambda: [embed_theirs(batch) for batch in batches]),
            Target(ratio=RATIO),
        ),
        note=note,
        failed=failed,
    )


def measure_step(bench: Bench, sizes: Sizes, ours: Any, theirs: Any) -> Measurement:
    """Measure a training step on the frames of one batch."""
    generator = _generator()
    frames = torch.randn(
        sizes.items, 1 + int(100 * sizes.seconds), sizes.mels, generator=generator
    ).to(bench.device)
    speakers = torch.randint(sizes.speakers, (sizes.items,), generator=generator)
    speakers = speakers.to(bench.device)
    loss = build_loss(sizes).to(bench.device)
    step = step_of_ours(ours, loss, frames, speakers)
    step_theirs = theirs and step_of_theirs(theirs, loss.weight, frames, speakers)
    differs = "" if theirs is None else unlike_steps(step, step_theirs, ours, theirs)
    return bench.compare(
        Contest(
            AREA,
            f"ECAPA {sizes.channels}, training step, {sizes.items} x {sizes.seconds:g} s",
            "speechbrain",
            step,
            step_theirs,
            Target(ratio=RATIO),
        ),
        note=differs,
        failed=bool(differs),
    )


def measure_scores(bench: Bench, sizes: Sizes) -> Measurement:
    """Measure the comparison of some embeddings with all enrolled speakers."""
    from speechkit.speakers.enrollment import EnrolledSpeakers

    enrolled = EnrolledSpeakers(embedding_size=sizes.embed_dim, model="benchmark")
    generator = _generator()
    for number in range(sizes.speakers):
        enrolled.add(f"speaker {number}", torch.randn(2, sizes.embed_dim, generator=generator))
    asked = torch.randn(sizes.clips, sizes.embed_dim, generator=generator)

    def one_by_one() -> Tensor:
        return torch.stack([F.cosine_similarity(asked, own[None]) for own in enrolled.means], 1)

    same = _close(enrolled.scores(asked), one_by_one())
    return bench.compare(
        Contest(
            AREA,
            f"scores of {sizes.clips} embeddings, {sizes.speakers} enrolled",
            "plain loop",
            lambda: enrolled.scores(asked),
            one_by_one,
            Target(ratio=1.0),
            calls=10,
        ),
        note="" if same else "the scores differ",
        failed=not same,
        on_cpu=True,
    )


def measure_clustering(bench: Bench, sizes: Sizes) -> Measurement:
    """Measure the clustering of windows of voices that take turns, how many being unknown."""
    from speechkit.speakers.clustering import spectral_clustering

    windows, voices = turns(sizes)
    found = spectral_clustering(windows)
    pairs = len(set(zip(found.tolist(), voices.tolist())))
    right = pairs == sizes.voices == int(found.max()) + 1
    return bench.compare(
        Contest(
            AREA,
            f"clustering, {sizes.windows} windows, {sizes.voices} speakers",
            "",
            lambda: spectral_clustering(windows),
            None,
            Target(seconds=10.0),
        ),
        note="" if right else "windows of different speakers are in one cluster, or one's in two",
        failed=not right,
        on_cpu=True,
    )


def turns(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return embeddings ``(N, D)`` of windows, and who speaks in each; turns are of 20 windows.

    The cosine is about two thirds between windows of one speaker, and about 0 between two speakers.
    """
    generator = _generator()
    means = F.normalize(torch.randn(sizes.voices, sizes.embed_dim, generator=generator))
    voices = torch.arange(sizes.windows) // 20 % sizes.voices
    noise = F.normalize(torch.randn(sizes.windows, sizes.embed_dim, generator=generator))
    return means[voices] + 0.7 * noise, voices


def build_ours(sizes: Sizes, theirs: Any) -> Any:
    """Build our model as the conversion does, with the peer's weights where there is one."""
    from speechkit.convert.speaker import convert_ecapa
    from speechkit.features.normalize import UtteranceNorm
    from speechkit.features.spectrum import LogMel
    from speechkit.models.speaker import SpeakerEncoder
    from speechkit.nn.ecapa import ECAPAEncoder
    from speechkit.nn.pooling import AttentiveStatisticsPooling, EmbeddingLayer

    model = SpeakerEncoder(
        features=LogMel(
            sample_rate=RATE, num_mels=sizes.mels, window="hamming", pad_mode="constant",
            filters="symmetric", log="db", floor=1e-10, top_db=80.0,
        ),
        norm=UtteranceNorm(mean_only=True),
        encoder=ECAPAEncoder(
            input_size=sizes.mels, channels=sizes.channels, output_size=sizes.output_size,
            se_size=sizes.squeeze, padding="reflect", sum_inputs=False,
        ),
        pooling=AttentiveStatisticsPooling(
            input_size=sizes.output_size, attention_size=sizes.attention
        ),
        projection=EmbeddingLayer(
            input_size=2 * sizes.output_size, embed_dim=sizes.embed_dim, norm_input=True
        ),
    )  # fmt: skip
    if theirs is not None:
        model.load_state_dict(model.state_dict() | convert_ecapa(theirs.state_dict()).state)
    return model


def build_speechbrain(sizes: Sizes) -> Any:
    """Build SpeechBrain's ECAPA-TDNN as its recipe does; None where it is not installed."""
    if peer("speechbrain") is None:
        return None
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    torch.manual_seed(0)
    return ECAPA_TDNN(
        sizes.mels,
        lin_neurons=sizes.embed_dim,
        channels=[sizes.channels] * 4 + [sizes.output_size],
        attention_channels=sizes.attention,
        se_channels=sizes.squeeze,
    )


def build_loss(sizes: Sizes) -> Any:
    """Build our additive angular margin, with the speakers' weights."""
    from speechkit.losses.speaker import SpeakerLoss

    torch.manual_seed(0)
    return SpeakerLoss(
        embed_dim=sizes.embed_dim, num_speakers=sizes.speakers, margin=MARGIN, scale=SCALE
    )


def embedder(model: Any) -> Callable[[Tensor], Tensor]:
    """Return our embeddings of waveforms ``(B, T)``, as in inference."""

    def run(waveforms: Tensor) -> Tensor:
        model.eval()
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        with torch.inference_mode():
            return model(waveforms, lengths)

    return run


def embedder_of_theirs(model: Any, sizes: Sizes) -> Callable[[Tensor], Tensor]:
    """Return the same of SpeechBrain's features, norm and model."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    features = Fbank(n_mels=sizes.mels)
    norm = InputNormalization(norm_type="sentence", std_norm=False)

    def run(waveforms: Tensor) -> Tensor:
        model.eval()
        lengths = torch.ones(len(waveforms), device=waveforms.device)
        with torch.inference_mode():
            return model(norm(features.to(waveforms.device)(waveforms), lengths)).squeeze(1)

    return run


def step_of_ours(model: Any, loss: Any, frames: Tensor, speakers: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes our loss and the gradients of all weights."""
    lengths = torch.full((len(frames),), frames.shape[1], device=frames.device)

    def run() -> Tensor:
        model.train()
        model.zero_grad()
        loss.zero_grad()
        embeddings = model.projection(model.pooling(*model.encoder(frames, lengths)))
        value: Tensor = loss(embeddings, speakers).mean()
        value.backward()
        return value.detach()

    return run


def step_of_theirs(
    model: Any, weight: Tensor, frames: Tensor, speakers: Tensor
) -> Callable[[], Tensor]:
    """Return a function that does the same with SpeechBrain's model, classifier and loss."""
    from speechbrain.lobes.models.ECAPA_TDNN import Classifier
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    number, size = weight.shape
    classifier = Classifier(size, lin_neurons=size, out_neurons=number)
    classifier.weight = torch.nn.Parameter(weight.detach().clone())
    loss = LogSoftmaxWrapper(AdditiveAngularMargin(margin=MARGIN, scale=SCALE))

    def run() -> Tensor:
        model.train()
        model.zero_grad()
        classifier.zero_grad()
        value: Tensor = loss(classifier(model(frames)), speakers.unsqueeze(1))
        value.backward()
        return value.detach()

    return run


def unlike_steps(
    step: Callable[[], Tensor], step_theirs: Callable[[], Tensor], ours: Any, theirs: Any
) -> str:
    """Tell what differs after a step of each: nothing, the losses or the gradients."""
    if not _close(step(), step_theirs()):
        return "the losses differ"
    pairs = (
        (ours.encoder.first.conv, theirs.blocks[0].conv.conv),
        (ours.pooling.score, theirs.asp.conv.conv),
    )
    grads = [(own.weight.grad, other.weight.grad) for own, other in pairs]
    # Rounding puts some units on the other side of a ReLU's corner: in float64 all is the same.
    same = all(_close(a, b.view_as(a), 5e-2) for a, b in grads)
    return "" if same else "the gradients differ"


def _close(a: Tensor, b: Tensor, share: float = 1e-3) -> bool:
    """Whether what differs is a small share of what there is, both as root mean squares."""
    return bool((a - b).norm() <= share * b.norm())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _millions(model: Any) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
