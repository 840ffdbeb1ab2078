"""Train and test a separator, or with one source an enhancer.

    python recipes/separation/train.py recipes/separation/hparams/librimix_mini_convtasnet.yaml

The YAML says which corpus, mixing, mask network and schedule; this file what a batch goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechkit.brain import Brain
from speechkit.data.audio import write_audio
from speechkit.data.batch import Batch
from speechkit.data.errors import DataError
from speechkit.losses.separation import SeparationLoss
from speechkit.metrics.separation import score_utterance
from speechkit.models.separator import Separated
from speechkit.run import run
from speechkit.training import Stage

Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Separation(Brain):
    """A separator's training, whatever its mask network and its number of sources.

    Parameters
    ----------
    loss : callable
        ``loss(estimates, sources, lengths)``: of each utterance, in dB, and the order of the
        estimates; negated SI-SNR by default.
    metrics : sequence of str
        What a test computes; validation computes SI-SNR alone.
    num_examples : int
        Utterances of each test split, the first of its manifest, whose estimates are written to
        ``test/<split>/audio/`` and can be heard in the report.
    **kwargs
        What :class:`speechkit.brain.Brain` takes.
    """

    scorer = "separation"

    def __init__(
        self,
        *,
        loss: Loss | None = None,
        metrics: Sequence[str] = ("si_snr", "sdr", "pesq", "stoi"),
        num_examples: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loss = SeparationLoss() if loss is None else loss
        self.metrics = tuple(metrics)
        self.num_examples = num_examples

    def compute_forward(self, batch: Batch, stage: Stage) -> Separated:
        """Separate the mixtures."""
        separated: Separated = self.forward(*batch.waveform)
        return separated

    def compute_objectives(self, outputs: Separated, batch: Batch, stage: Stage) -> Tensor:
        """Give the loss of each utterance under its best order."""
        sources = batch.sources.data.transpose(1, 2)  # (B, S, T)
        found, wanted = outputs.estimates.shape[1], sources.shape[1]
        if found != wanted:
            raise DataError(
                f"the model gives {found} sources, but {batch.ids[0]} has {wanted}; set "
                f"--model.masker.num_sources {wanted}, or take other data"
            )
        losses, _ = self.loss(outputs.estimates.float(), sources, outputs.lengths)
        return losses

    def evaluate(self, outputs: Separated, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the scores of each utterance; of a few of a test, also the sound."""
        rows = []
        model: Any = self.model
        mixtures, lengths = (tensor.cpu() for tensor in batch.waveform)
        estimates = outputs.estimates.float().cpu()
        for index, utterance in enumerate(batch.utterance):
            size = int(lengths[index])
            mixture, found = mixtures[index, :size], estimates[index, :, :size]
            sources = batch.sources.data[index, :size].T.cpu()
            scores = score_utterance(
                found,
                sources,
                mixture,
                model.sample_rate,
                metrics=self.metrics if stage is Stage.TEST else ("si_snr",),
            )
            row = {
                "id": utterance.id,
                **scores,
                "speakers": utterance.extra.get("speakers"),
                "audio": utterance.audio,
                "start": utterance.start,
                "duration": utterance.duration,
                "sources": utterance.extra["sources"],
            }
            if stage is Stage.TEST and utterance.id in (names := self._examples()):
                place = Path("test", self.split, "audio", f"{names.index(utterance.id):03d}")
                row["estimates"] = self._write(place, found[scores["order"]])
            rows.append(row)
        return rows

    def _examples(self) -> list[str]:
        utterances = self.data.utterances[self.split]  # type: ignore[attr-defined]
        return [utterance.id for utterance in utterances[: self.num_examples]]

    def _write(self, place: Path, estimates: Tensor) -> list[str]:
        """Write the estimates of an utterance; their paths, relative to the run's folder."""
        model: Any = self.model
        paths = [f"{place.as_posix()}-estimate{n}.wav" for n in range(1, len(estimates) + 1)]
        for path, estimate in zip(paths, estimates):
            write_audio(self.folder / path, estimate, model.sample_rate, subtype="FLOAT")
        return paths


if __name__ == "__main__":
    run(Separation)
