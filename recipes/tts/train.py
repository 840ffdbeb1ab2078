"""Train and test text to speech.

    python recipes/tts/train.py recipes/tts/hparams/fsdd_tacotron2.yaml

The YAML says which corpus, front end, acoustic model and voices; this file what a batch goes
through. The vocoder is trained by recipes/vocoder; Griffin-Lim stands in until then.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit import distributed
from speechkit.brain import Brain
from speechkit.data.batch import Batch
from speechkit.data.errors import DataError
from speechkit.loss_means import LossMeans
from speechkit.losses.tts import OnePassLoss
from speechkit.metrics.results import Result
from speechkit.models.synthesizer import Synthesizer, SynthesizerOutput
from speechkit.models.voices import VoiceTable
from speechkit.run import run
from speechkit.speaking import SpokenTest
from speechkit.speaking_frames import leave_out_short
from speechkit.speaking_samples import export_mels, show_sentences
from speechkit.training import Stage

logger = logging.getLogger(__name__)


class TextToSpeech(Brain):
    """An acoustic model's training; tests speak each text and measure what is heard.

    Parameters
    ----------
    model : Synthesizer
        What the model folder holds.
    loss : callable
        Of the acoustic model: ``loss(outputs, mels, mel_lengths, token_lengths)`` gives ``(B,)`` by
        name; their sum is minimised.
    spoken_test : SpokenTest, optional
        What a test measures; alignments, durations and distances to the recording by default.
    sentences : sequence of str
        Spoken at every validation, to be heard in TensorBoard and in the report.
    export : path, optional
        After the test, write every utterance's mel as the model makes it under teacher forcing
        into this folder, with manifests: what a vocoder is fine-tuned on.
    **kwargs
        What :class:`speechkit.brain.Brain` takes.
    """

    scorer = "tts"
    model: Synthesizer

    def __init__(
        self,
        *,
        model: Synthesizer,
        loss: Callable[..., dict[str, Tensor]],
        spoken_test: SpokenTest | None = None,
        sentences: Sequence[str] = (),
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.loss = loss
        self.spoken_test = spoken_test or SpokenTest()
        self.spoken_test.check(model)
        self.sentences = tuple(sentences)
        for sentence in self.sentences:
            try:
                model.front_end.encode(sentence)
            except DataError as error:  # found before hours of training
                raise DataError(f"sentences: {sentence!r} cannot be spoken: {error}") from error
        self.export = export
        self.means = {stage: LossMeans() for stage in (Stage.TRAIN, Stage.VALID)}
        self._short: set[str] = set()

    def fit(self) -> None:
        """Train; a speaker whom the table of voices does not have is found before that."""
        if isinstance(self.model.voices, VoiceTable):
            names = set(self.model.voices.names)
            unknown = [row for row in self.data.train_items if row.speaker not in names]
            if unknown:
                shown = ", ".join(f"{row.id} ({row.speaker or 'none'})" for row in unknown[:5])
                raise DataError(
                    f"{self.data.paths['train']}: {len(unknown)} utterances are of speakers whom "
                    f"voices.names does not have: {shown}{', ...' if len(unknown) > 5 else ''}; "
                    "make voices of this manifest's field speaker, or leave these rows out"
                )
        super().fit()

    def fit_batches(self, batches: list[Batch]) -> None:
        """Make an update; recordings too short for their texts count as failures of the data."""
        super().fit_batches([leave_out_short(self.model, batch) for batch in batches])

    def _learnable(self, batch: Batch, stage: Stage) -> Batch:
        """Leave what cannot be aligned out of a validation's loss; training has done so before."""
        if stage is Stage.TRAIN:
            return batch
        kept = leave_out_short(self.model, batch)
        for failure in kept.failures:
            if failure.id not in self._short:
                self._short.add(failure.id)
                logger.warning("%s: left %s out of the loss: %s", self.split, *failure)
        return kept

    def compute_forward(self, batch: Batch, stage: Stage) -> SynthesizerOutput | None:
        """Run the model on texts and recordings of them; a test speaks instead."""
        if stage is Stage.TEST:
            return None
        batch = self._learnable(batch, stage)
        if not len(batch):
            return None
        pitch = batch.pitch.data if "pitch" in batch else None
        output: SynthesizerOutput = self.forward(
            *batch.tokens, *batch.waveform, self.voice_ids(batch), pitch
        )
        return output

    def voice_ids(self, batch: Batch) -> Tensor | None:
        """Give the numbers of the batch's voices, where the model has a table of them."""
        return self.spoken_test.voice_ids(self.model, batch)

    def compute_objectives(
        self, outputs: SynthesizerOutput | None, batch: Batch, stage: Stage
    ) -> Tensor:
        """Give the sum of the model's losses, and keep each for the log."""
        if outputs is None:
            return torch.zeros(len(batch), device=self.device)
        if isinstance(self.loss, OnePassLoss):
            self.loss.updates = self.position.step if stage is Stage.TRAIN else math.inf
        batch = self._learnable(batch, stage)
        losses = self.loss(outputs.outputs, *outputs.mels, batch.tokens.lengths)
        self.means[stage].add(losses)
        return torch.stack(list(losses.values())).sum(dim=0)

    def task_state(self) -> dict[str, Any]:
        """Keep the means of a running epoch."""
        return {"means": self.means[Stage.TRAIN].state_dict()}

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the means of a running epoch."""
        self.means[Stage.TRAIN].load_state_dict(state["means"])

    def end_training(self) -> dict[str, float]:
        """Give each loss."""
        return self.means[Stage.TRAIN].take()

    def end_validation(self) -> dict[str, float]:
        """Give each loss, and how well the sentences were spoken, which can be heard."""
        numbers = self.means[Stage.VALID].take()
        if self.sentences:
            batch = next(iter(self.data.eval_loader("valid")))
            ema = self.updater.ema
            with ema.applied() if ema is not None else contextlib.nullcontext():
                numbers |= show_sentences(
                    self.model, self.sentences, self.tracker, step=self.position.step, batch=batch
                )
        return numbers

    def evaluate(
        self, outputs: SynthesizerOutput | None, batch: Batch, stage: Stage
    ) -> list[dict[str, Any]]:
        """Speak the texts of a test, and measure that."""
        if stage is not Stage.TEST:
            return []
        return self.spoken_test.rows(self.model, batch, folder=self.folder, split=self.split)

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide the rows by what was heard: speech from text, from the recording's mel, itself."""
        return self.spoken_test.parts(split, rows)

    def test(self) -> dict[str, list[Result]]:
        """Test, and export mels where that is wanted."""
        data: Any = self.data
        for split in data.test_splits:
            known = data.train_items
            self.spoken_test.prepare(data.utterances[split], known, model=self.model, split=split)
        results = super().test()
        if self.export is not None and distributed.is_main():
            export_mels(self.model, self.data, Path(self.export), self.voice_ids, self.device)
        return results


if __name__ == "__main__":
    run(TextToSpeech)
