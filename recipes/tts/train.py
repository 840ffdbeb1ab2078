"""Train and test text to speech.

    python recipes/tts/train.py recipes/tts/hparams/fsdd_tacotron2.yaml

The YAML says which corpus, front end, acoustic model and voices; this file what a batch goes
through. The vocoder is trained by recipes/vocoder; Griffin-Lim stands in until then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit import distributed
from speechkit.brain import Brain
from speechkit.data.batch import Batch
from speechkit.metrics.results import Result
from speechkit.models.synthesizer import Synthesizer, SynthesizerOutput
from speechkit.models.voices import VoiceTable
from speechkit.run import run
from speechkit.speaking import SpokenTest
from speechkit.speaking_samples import export_mels, show_sentences
from speechkit.training import Stage


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
            model.front_end.encode(sentence)  # an unknown symbol is found before hours of training
        self.export = export
        self._sums: dict[str, list[float]] = {}

    def fit(self) -> None:
        """Train; a speaker whom the table of voices does not have is found before that."""
        if isinstance(self.model.voices, VoiceTable):
            self.model.voices.ids(sorted({str(row.speaker) for row in self.data.train_items}))
        super().fit()

    def compute_forward(self, batch: Batch, stage: Stage) -> SynthesizerOutput:
        """Run the model on texts and recordings of them."""
        pitch = batch.pitch.data if "pitch" in batch else None
        output: SynthesizerOutput = self.forward(
            *batch.tokens, *batch.waveform, self.voice_ids(batch), pitch
        )
        return output

    def voice_ids(self, batch: Batch) -> Tensor | None:
        """Give the numbers of the batch's voices, where the model has a table of them."""
        return self.spoken_test.voice_ids(self.model, batch)

    def compute_objectives(self, outputs: SynthesizerOutput, batch: Batch, stage: Stage) -> Tensor:
        """Give the sum of the model's losses, and keep each for the log."""
        losses = self.loss(outputs.outputs, *outputs.mels, batch.tokens.lengths)
        for name, values in losses.items():
            total = self._sums.setdefault(f"{stage.name.lower()}/{name}", [0.0, 0.0])
            total[0] += float(values.detach().sum())
            total[1] += len(values)
        return torch.stack(list(losses.values())).sum(dim=0)

    def _means(self, stage: Stage) -> dict[str, float]:
        """Give the means of the losses, and forget them."""
        prefix = f"{stage.name.lower()}/"
        mine = [(name, self._sums.pop(name)) for name in [*self._sums] if name.startswith(prefix)]
        totals: dict[str, list[float]] = {}
        # Gathered: a rank that had no batch of a small split has no names.
        for name, (total, count) in distributed.gather_objects(mine):
            sums = totals.setdefault(name.removeprefix(prefix), [0.0, 0.0])
            sums[0] += total
            sums[1] += count
        return {name: total / max(1.0, count) for name, (total, count) in totals.items()}

    def task_state(self) -> dict[str, Any]:
        """Keep the sums of a running epoch."""
        return {"sums": {name: list(total) for name, total in self._sums.items()}}

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a running epoch."""
        self._sums = {name: list(total) for name, total in state["sums"].items()}

    def end_training(self) -> dict[str, float]:
        """Give each loss."""
        return self._means(Stage.TRAIN)

    def end_validation(self) -> dict[str, float]:
        """Give each loss, and how well the sentences were spoken, which can be heard."""
        numbers = self._means(Stage.VALID)
        if self.sentences:
            batch = next(iter(self.data.eval_loader("valid")))
            ema = self.updater.ema
            with ema.applied() if ema is not None else contextlib.nullcontext():
                numbers |= show_sentences(
                    self.model, self.sentences, self.tracker, step=self.position.step, batch=batch
                )
        return numbers

    def evaluate(
        self, outputs: SynthesizerOutput, batch: Batch, stage: Stage
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
            self.spoken_test.prepare(data.utterances[split], data.train_items)
        results = super().test()
        if self.export is not None and distributed.is_main():
            export_mels(self.model, self.data, Path(self.export), self.voice_ids, self.device)
        return results


if __name__ == "__main__":
    run(TextToSpeech)
