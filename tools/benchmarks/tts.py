"""Text to speech: training and inference of the acoustic models, beside SpeechBrain's.

Tacotron 2 at its published size: a training step (forward, loss, backward) on random symbols and
frames, and speech of one text for so many frames, the stop turned off. Both sides drop what their
recipes drop; before they are timed both get the same weights, and what they say without dropout
is compared. Speech in one pass, with a vocoder, has no peer: its target is real time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.benchmarks.measure import Bench, Contest, Measurement, Target, peer

AREA = "tts"
RATIO = 1.3
REAL_TIME = 20
RATE, HOP = 22050, 256


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models and of the inputs."""

    items: int = 8
    symbols: int = 80
    frames: int = 400
    mels: int = 80
    width: int = 512  # embeddings, encoder, post-net
    attention: int = 128
    units: int = 1024  # of each LSTM of the decoder
    prenet: int = 256
    convolutions: int = 384  # channels of the one-pass model
    vocoder: int = 192  # features of its vocoder


FULL = Sizes()
QUICK = Sizes(
    items=2, symbols=10, frames=20, mels=8, width=16, attention=8, units=16, prenet=8,
    convolutions=16, vocoder=16,
)  # fmt: skip


def measure(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure the acoustic models."""
    yield from measure_tacotron(bench, sizes)
    yield measure_one_pass(bench, sizes)


def measure_one_pass(bench: Bench, sizes: Sizes) -> Measurement:
    """Measure text to waveform in one pass, at the sizes of recipes/tts and recipes/vocoder."""
    speak = one_pass(sizes, bench.device)
    seconds = speak().shape[1] / RATE
    return bench.compare(
        Contest(
            AREA,
            f"one pass and its vocoder, filters over pulses, {seconds:.1f} s of speech",
            "",
            speak,
            None,
            Target(seconds=seconds / REAL_TIME),
        ),
        note=f"the target is {REAL_TIME} times faster than real time",
    )


def one_pass(sizes: Sizes, device: torch.device) -> Callable[[], Tensor]:
    """Return what speaks symbols, each for five frames: `ljspeech_one_pass`, then its vocoder."""
    from speechkit.features.spectrum import LogMel
    from speechkit.models.one_pass_tts import OnePassTTS
    from speechkit.models.vocoder import NeuralVocoder
    from speechkit.nn.convnext import ConvNeXtEncoder
    from speechkit.nn.source_filter import SourceFilterGenerator

    width = sizes.convolutions
    block: dict[str, int] = {"input_size": width, "embed_dim": width, "hidden_size": 3 * width}
    acoustic = OnePassTTS(
        num_symbols=148,
        num_mels=sizes.mels,
        encoder=ConvNeXtEncoder(num_layers=6, **block),
        decoder=ConvNeXtEncoder(num_layers=8, **block),
    )
    vocoder = NeuralVocoder(
        features=LogMel(
            sample_rate=RATE, n_fft=1024, hop_length=HOP, num_mels=sizes.mels, power=1.0
        ),
        generator=SourceFilterGenerator(
            sample_rate=RATE, num_mels=sizes.mels, hop_length=HOP,
            encoder=ConvNeXtEncoder(
                input_size=sizes.mels, embed_dim=sizes.vocoder, num_layers=5,
                hidden_size=2 * sizes.vocoder,
            ),
        ),
    )  # fmt: skip
    acoustic, vocoder = acoustic.eval().to(device), vocoder.eval().to(device)
    tokens = torch.randint(1, 148, (1, sizes.symbols)).to(device)
    lengths = torch.tensor([sizes.symbols], device=device)
    durations = torch.full((1, sizes.symbols), 5.0, device=device)

    def speak() -> Tensor:
        with torch.inference_mode():
            spoken = acoustic.generate(tokens, lengths, durations=durations)
            waveform: Tensor = vocoder(spoken.mel, spoken.lengths).data
        return waveform

    return speak


def measure_tacotron(bench: Bench, sizes: Sizes) -> Iterator[Measurement]:
    """Measure a training step and the inference of Tacotron 2."""
    ours, theirs = build_tacotron(sizes), build_speechbrain(sizes)
    note, failed = "", False
    if theirs is not None:
        from speechkit.convert.tacotron2 import convert_tacotron2

        ours.load_state_dict(convert_tacotron2(theirs.state_dict()).state)
        theirs = theirs.to(bench.device)
        note = f"{_millions(ours)} parameters against {_millions(theirs)}"
    ours = ours.to(bench.device)
    batch = inputs_of(sizes, bench.device)
    if theirs is not None:
        failed = not same_frames(ours, theirs, batch)
        note += "; the frames differ" if failed else ""
    for case, run, run_theirs in (
        (
            f"Tacotron 2, training step, {sizes.items} x {sizes.symbols} x {sizes.frames}",
            step(ours, batch),
            theirs and step_of_theirs(theirs, batch),
        ),
        (
            f"Tacotron 2, inference, {sizes.frames} frames",
            speak(ours, batch),
            theirs and speak_of_theirs(theirs, batch),
        ),
    ):
        yield bench.compare(
            Contest(AREA, case, "speechbrain", run, run_theirs, Target(ratio=RATIO)),
            note=note,
            failed=failed,
        )


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs_of(sizes: Sizes, device: torch.device) -> Batch:
    """Return symbols, their lengths, frames and their lengths; all items are full."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 148, (sizes.items, sizes.symbols), generator=generator)
    mels = torch.randn(sizes.items, sizes.frames, sizes.mels, generator=generator)
    lengths = [torch.full((sizes.items,), size) for size in (sizes.symbols, sizes.frames)]
    return (tokens.to(device), lengths[0].to(device), mels.to(device), lengths[1].to(device))


def build_tacotron(sizes: Sizes) -> Any:
    """Build our Tacotron 2."""
    from speechkit.models.tacotron2 import Tacotron2

    return Tacotron2(
        num_symbols=148,
        num_mels=sizes.mels,
        embed_dim=sizes.width,
        encoder_size=sizes.width,
        prenet_sizes=(sizes.prenet, sizes.prenet),
        attention_size=sizes.attention,
        attention_lstm_size=sizes.units,
        decoder_lstm_size=sizes.units,
        postnet_size=sizes.width,
    )


def build_speechbrain(sizes: Sizes) -> Any:
    """Build SpeechBrain's Tacotron 2 as its recipe does; None where it is not installed."""
    if peer("speechbrain") is None:
        return None
    from speechbrain.lobes.models.Tacotron2 import Tacotron2

    return Tacotron2(
        mask_padding=True,
        n_mel_channels=sizes.mels,
        n_symbols=148,
        symbols_embedding_dim=sizes.width,
        encoder_kernel_size=5,
        encoder_n_convolutions=3,
        encoder_embedding_dim=sizes.width,
        attention_rnn_dim=sizes.units,
        attention_dim=sizes.attention,
        attention_location_n_filters=32,
        attention_location_kernel_size=31,
        n_frames_per_step=1,
        decoder_rnn_dim=sizes.units,
        prenet_dim=sizes.prenet,
        max_decoder_steps=sizes.frames,
        gate_threshold=1.0,  # no step says stop
        p_attention_dropout=0.1,
        p_decoder_dropout=0.1,
        postnet_embedding_dim=sizes.width,
        postnet_kernel_size=5,
        postnet_n_convolutions=5,
        decoder_no_early_stopping=False,
    )


def same_frames(ours: Any, theirs: Any, batch: Batch) -> bool:
    """Whether both predict the same of a few known frames without dropout."""
    tokens, token_lengths, mels, mel_lengths = batch
    few = mels[:, :10]
    lengths = mel_lengths.clamp(max=10)
    kept = ours.decoder.prenet.dropout, theirs.decoder.prenet.dropout
    ours.decoder.prenet.dropout = theirs.decoder.prenet.dropout = 0.0
    with torch.no_grad():
        mine = ours.eval()(tokens, token_lengths, few, lengths).mel
        peers = theirs.eval()((tokens, token_lengths, few.transpose(1, 2), None, lengths))[1]
    ours.decoder.prenet.dropout, theirs.decoder.prenet.dropout = kept
    return torch.allclose(mine, peers.transpose(1, 2), atol=1e-3)


def step(model: Any, batch: Batch) -> Callable[[], object]:
    """Return a function that computes our loss and the gradients of all weights."""
    from speechkit.losses.tacotron import TacotronLoss

    loss = TacotronLoss()
    tokens, token_lengths, mels, mel_lengths = batch

    def run() -> None:
        model.train()
        model.zero_grad()
        outputs = model(tokens, token_lengths, mels, mel_lengths)
        parts = loss(outputs, mels, mel_lengths, token_lengths)
        sum(parts.values(), torch.zeros(())).mean().backward()

    return run


def step_of_theirs(model: Any, batch: Batch) -> Callable[[], object]:
    """Return a function that does the same with SpeechBrain's model and loss."""
    from speechbrain.lobes.models.Tacotron2 import Loss

    loss = Loss(guided_attention_sigma=0.2)
    tokens, token_lengths, mels, mel_lengths = batch
    turned = mels.transpose(1, 2)
    stop = torch.zeros(mels.shape[:2], device=mels.device)
    stop[:, -1] = 1.0

    def run() -> None:
        model.train()
        model.zero_grad()
        outputs = model((tokens, token_lengths, turned, None, mel_lengths))
        loss(outputs, (turned, stop), token_lengths, mel_lengths, 1).loss.backward()

    return run


def speak(model: Any, batch: Batch) -> Callable[[], object]:
    """Return a function that speaks the first text, as in inference."""
    tokens, token_lengths, mels, _ = batch

    def run() -> None:
        model.eval()
        model.generate(tokens[:1], token_lengths[:1], max_frames=mels.shape[1], stop_threshold=1.0)

    return run


def speak_of_theirs(model: Any, batch: Batch) -> Callable[[], object]:
    """Return a function that speaks it with SpeechBrain's model."""
    tokens, token_lengths = batch[:2]

    def run() -> None:
        model.eval()
        with torch.no_grad():
            model.infer(tokens[:1], token_lengths[:1])

    return run


def _millions(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
