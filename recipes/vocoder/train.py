"""Train and test a vocoder: from mel spectra to waveforms.

    python recipes/vocoder/train.py recipes/vocoder/hparams/ljspeech_source_filter.yaml --root DIR

The YAML says which audio, network and losses; this file what a batch goes through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.conditions import (
    by_condition,
    example_numbers,
    keep_example,
    quality_row,
    split_name,
)
from speechkit.data.batch import Batch
from speechkit.features.pitch import track_pitch
from speechkit.gan import GANBrain, Generated
from speechkit.losses.vocoder import MultiResolutionSTFTLoss, pitch_loss
from speechkit.metrics.tts import f0_errors
from speechkit.models.vocoder import GriffinLim, Vocoder
from speechkit.nn.masking import Padded, mask_padding
from speechkit.nn.source_filter import SourceFilterGenerator
from speechkit.parallel import wait_for
from speechkit.run import run
from speechkit.training import Stage

METRICS = ("stoi", "estoi", "pesq", "visqol_speech", "mel")


class Condition(NamedTuple):
    """What is tested of a batch: its name, waveforms ``(B, T)``, and the work's seconds."""

    name: str
    waveform: Tensor
    seconds: float | None = None


class Made(NamedTuple):
    """Waveforms ``(B, 1, T)``, and in training the loss ``(B,)`` of a predicted pitch."""

    waveform: Tensor
    pitch: Tensor | None


class VocoderTraining(GANBrain):
    """A vocoder's training.

    Parameters
    ----------
    losses : mapping of str to nn.Module
        The distances, by their names in the balancer: ``loss(estimate, target, lengths)`` of
        waveforms ``(B, 1, T)``.
    metrics : sequence of str
        What a test measures, see `speechkit.metrics.quality.measure`, beside the distance in
        spectra at several resolutions, the errors of the pitch and the real-time factor.
    num_examples : int
        Utterances of each test split, the first of its manifest, whose sound is kept under
        ``test/<split>@<condition>/audio/`` and can be heard in the report.
    **kwargs
        What :class:`speechkit.gan.GANBrain` takes.
    """

    scorer = "vocoder"

    def __init__(
        self,
        *,
        losses: Mapping[str, nn.Module],
        metrics: Sequence[str] = METRICS,
        num_examples: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.losses = {name: loss.to(self.device) for name, loss in losses.items()}
        self.metrics = tuple(metrics)
        self.num_examples = num_examples
        self.stft = MultiResolutionSTFTLoss().to(self.device)
        self.griffin_lim = GriffinLim(features=self.vocoder.features).to(self.device)

    @property
    def vocoder(self) -> Vocoder:
        """The model."""
        return self.network  # type: ignore[return-value]

    # ---------------------------------------------------------------- training

    def mels(self, batch: Batch) -> Padded:
        """Give the mels of a batch: those of an acoustic model's files, else of the audio."""
        if "mel" in batch:
            return Padded(*batch.mel)
        with torch.no_grad():
            return self.vocoder.features(*batch.waveform)

    def compute_forward(self, batch: Batch, stage: Stage) -> Made:
        """Make the waveforms of the mels, as long as the recordings."""
        target, lengths = batch.waveform
        made = self.forward(*self.mels(batch)).data[:, : target.shape[1]]
        pitch = self._pitch_loss(batch) if stage is Stage.TRAIN else None
        return Made(mask_padding(made, lengths).unsqueeze(1), pitch)

    def _pitch_loss(self, batch: Batch) -> Tensor | None:
        """Compare the pitch that a generator with a source predicts with the tracked one."""
        generator = self.vocoder.generator
        predicted = generator.take_pitch() if isinstance(generator, SourceFilterGenerator) else None
        if predicted is None:
            return None
        waveform, lengths = (x.cpu() for x in batch.waveform)
        hop, frames = self.vocoder.hop_length, predicted.log_f0.shape[1]
        f0 = torch.zeros(predicted.log_f0.shape)
        for index, size in enumerate(lengths.tolist()):
            found = track_pitch(waveform[index, :size], self.vocoder.sample_rate, hop_length=hop)
            f0[index, : min(frames, len(found.f0))] = found.f0[:frames]
        valid = (batch.waveform.lengths // hop + 1).clamp(max=frames)
        return pitch_loss(predicted, f0.to(self.device), valid)

    def other_loss(self, outputs: Made) -> Tensor | None:
        """Give the loss of the pitch, where the generator predicts one."""
        return outputs.pitch

    def generated(self, outputs: Made, batch: Batch) -> Generated:
        """Give the vocoder's and the recorded waveforms."""
        waveform, lengths = batch.waveform
        return Generated(outputs.waveform, waveform.unsqueeze(1), lengths)

    def distances(self, pair: Generated) -> dict[str, Tensor]:
        """Give the distances that the YAML names."""
        return {name: loss(*pair) for name, loss in self.losses.items()}

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, outputs: Made, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the measures of each utterance in each condition; of a few, also the sound."""
        if stage is not Stage.TEST:
            return []
        waveform, lengths = batch.waveform
        seconds = float(lengths.sum()) / self.vocoder.sample_rate
        rows = []
        for condition in self._conditions(batch):
            pair = Generated(condition.waveform.unsqueeze(1), waveform.unsqueeze(1), lengths)
            distances = self.stft(*pair).tolist()
            for index, size in enumerate(lengths.tolist()):
                row = self._row(
                    batch.utterance[index], condition.name, waveform[index, :size].float().cpu(),
                    condition.waveform[index, :size].float().cpu(),
                )  # fmt: skip
                row["stft"] = distances[index]
                if condition.seconds is not None:
                    row["rtf"] = condition.seconds / seconds
                rows.append(row)
        return rows

    def _conditions(self, batch: Batch) -> Iterator[Condition]:
        """Give what is compared: this vocoder, Griffin-Lim of the same mels, the recording."""
        target, lengths = batch.waveform
        mels = self.mels(batch)
        for name, vocoder in (("vocoder", self.vocoder), ("griffin-lim", self.griffin_lim)):
            wait_for(self.device)
            start = time.perf_counter()
            made = vocoder(*mels).data
            wait_for(self.device)
            elapsed = time.perf_counter() - start
            yield Condition(name, mask_padding(made[:, : target.shape[1]], lengths), elapsed)
        yield Condition("recording", target)

    def _row(
        self, utterance: Any, condition: str, reference: Tensor, estimate: Tensor
    ) -> dict[str, Any]:
        rate = self.vocoder.sample_rate
        row = quality_row(utterance, reference[None], estimate[None], rate, metrics=self.metrics)
        hop = self.vocoder.hop_length
        f0 = [track_pitch(x, rate, hop_length=hop).f0 for x in (reference, estimate)]
        row["f0_rmse_cents"], row["voicing_error"] = f0_errors(*f0)
        examples = example_numbers(self.data.utterances[self.split], self.num_examples)  # type: ignore[attr-defined]
        split, number = split_name(self.split, condition), examples.get(utterance.id)
        kept = keep_example(self.folder, split, number, estimate[None], rate)
        return {**row, "vocoder": condition, **kept}

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide the rows by condition."""
        return by_condition(split, rows, "vocoder")


if __name__ == "__main__":
    run(VocoderTraining)
