"""Train and test a speaker encoder.

    python recipes/speaker/train.py recipes/speaker/hparams/librispeech_ecapa_small.yaml

The YAML says which corpus, encoder, loss and trials; this file what a batch goes through.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechkit import distributed, parallel
from speechkit.brain import Brain
from speechkit.data.audio import read_audio
from speechkit.data.batch import Batch
from speechkit.data.errors import DataError
from speechkit.losses.speaker import SpeakerLoss
from speechkit.metrics.results import Result
from speechkit.metrics.verification import summarize
from speechkit.models.speaker import SpeakerEncoder
from speechkit.nn.masking import mask_padding
from speechkit.run import run
from speechkit.speakers.calibration import calibrate
from speechkit.speakers.plda import Plda, fit_plda
from speechkit.speakers.scores import AdaptiveSNorm, pair_scores, speaker_means
from speechkit.speakers.trials import (
    Trial,
    read_trials,
    score_trials,
    trial_rows,
    trial_speakers,
)
from speechkit.training import Stage

logger = logging.getLogger(__name__)

Found = tuple[str, str, Tensor]  # condition, utterance, embedding
COHORT_SECONDS = 10.0


class SpeakerVerification(Brain):
    """A speaker encoder's training: which of the training speakers it is, tested on new ones.

    Validation and tests score trial lists by the cosine of embeddings. A test is made in
    conditions: whole recordings, their middle seconds, scores normalised by a cohort, and the mean
    log-mel spectrum in the place of the embedding, which is the floor.

    Parameters
    ----------
    model : SpeakerEncoder
        What the model folder holds, with the calibration that the validation trials give.
    loss : SpeakerLoss
        With the training speakers' weights; they are in the checkpoints.
    trials : mapping of split to path
        Trial lists, whose files are the ids of the split's manifest; one for ``valid`` and one for
        each test split.
    test_seconds : sequence of float
        Lengths, beside whole recordings, that a test is made with.
    cohort_size : int, optional
        Training speakers that AS-norm takes of its cohort for each recording; without it there is
        no such condition.
    cohort_recordings : int
        Recordings of each training speaker that make its mean in the cohort.
    plda : bool
        Test with PLDA too, fitted on these recordings; speakers must have several.
    **kwargs
        What :class:`speechkit.brain.Brain` takes. Prefixes of parameters (``frozen``,
        ``parameter_groups``) begin with ``encoder.`` or ``loss.``.
    """

    scorer = "speaker"

    def __init__(
        self,
        *,
        model: SpeakerEncoder,
        loss: SpeakerLoss,
        trials: Mapping[str, str],
        test_seconds: Sequence[float] = (),
        cohort_size: int | None = None,
        cohort_recordings: int = 5,
        plda: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=nn.ModuleDict({"encoder": model, "loss": loss}), **kwargs)
        if getattr(self.data, "overfit", None) is not None:
            raise ValueError(
                "data.overfit puts training recordings in the place of those that the trials name; "
                "to learn a few by heart: --data.limit 40 --data.augment []"
            )
        self.loss = loss
        self.trials = {split: read_trials(path) for split, path in trials.items()}
        missing = {"valid", *self.data.test_splits} & {*self.data.splits} - {*self.trials}
        if missing:
            raise ValueError(f"trials has no list for {', '.join(sorted(missing))}")
        if model.embed_dim != loss.embed_dim:
            raise ValueError(
                f"the model gives {model.embed_dim} values and loss.embed_dim is {loss.embed_dim}"
            )
        self.test_seconds = tuple(test_seconds)
        self.cohort_size = cohort_size
        self.cohort_recordings = cohort_recordings
        self.plda = plda
        self._found: list[Found] = []
        self._cohort = torch.zeros(0)
        self._cohort_spectrum = torch.zeros(0)
        self._plda: Plda | None = None

    @property
    def network(self) -> SpeakerEncoder:
        """The encoder."""
        return self.model["encoder"]  # type: ignore[index]

    # ---------------------------------------------------------------- training

    def compute_forward(self, batch: Batch, stage: Stage) -> Tensor:
        """Embed a batch."""
        embeddings: Tensor = self.forward(*batch.waveform)
        return embeddings

    def compute_objectives(self, outputs: Tensor, batch: Batch, stage: Stage) -> Tensor:
        """Give the loss of each crop; there is none of speakers who are not in training."""
        if stage is not Stage.TRAIN:
            return torch.zeros(len(batch), device=outputs.device)
        losses: Tensor = self.loss(outputs, batch.speaker)
        return losses

    def train_batch(self, batch: Batch, share: float, *, last: bool) -> Tensor:
        """Add a batch's gradients; those of the loss's weights are averaged over processes here."""
        losses = super().train_batch(batch, share, last=last)
        if last:  # only the encoder is wrapped
            parallel.average_gradients(self.loss.parameters())
        return losses

    def end_training(self) -> dict[str, float]:
        """Say where the margin has come to."""
        return {"margin": float(self.loss.current_margin())}

    # ---------------------------------------------------------------- validation

    def validate(self) -> dict[str, float]:
        """Score the validation trials; there is no loss."""
        self._found = []
        numbers = super().validate()
        numbers.pop("loss", None)
        return numbers

    def end_validation(self) -> dict[str, float]:
        """Give the error rates of the validation trials."""
        results = summarize(self._rows("valid", "", distributed.gather_objects(self._found)))
        return {result.metric: result.value for result in results}

    def load_best(self) -> None:
        """Take the best weights, and let the validation trials decide what a score means."""
        super().load_best()
        if "valid" not in self.data.splits:
            return
        self.validate()
        rows = self._rows("valid", "", distributed.gather_objects(self._found))
        try:
            fitted = calibrate([r["score"] for r in rows], [r["target"] for r in rows])
        except DataError as error:
            logger.warning("the model is saved without a threshold: %s", error)
            self.network.calibration = None
        else:
            self.network.calibration = fitted.to_dict()
            logger.info("one speaker from a score of %.3f on", fitted.threshold)

    # ---------------------------------------------------------------- test

    def test(self) -> dict[str, list[Result]]:
        """Test every list in all conditions."""
        if "train" in self.data.splits:
            self._embed_cohort()
        return super().test()

    def _embed_cohort(self) -> None:
        """Embed a few recordings of each training speaker."""
        counts: dict[str, int] = {}
        chosen, seen = [], set()
        for utterance in self.data.train_items:
            speaker, span = str(utterance.speaker), (utterance.audio, utterance.start)
            if span not in seen and counts.get(speaker, 0) < self.cohort_recordings:
                counts[speaker] = counts.get(speaker, 0) + 1
                seen.add(span)
                chosen.append(utterance)
        encoder = self.network
        embeddings, spectra = [], []
        for utterance in chosen:
            waveform, _ = read_audio(
                utterance.audio, start=utterance.start, sample_rate=encoder.sample_rate,
                duration=min(COHORT_SECONDS, utterance.duration),
            )  # fmt: skip
            embeddings.append(encoder.embed_windows([waveform])[0])
            size = torch.tensor([len(waveform)], device=self.device)
            spectra.append(self._spectrum(waveform[None].to(self.device), size)[0].cpu())
        owners = [str(utterance.speaker) for utterance in chosen]
        self._cohort, _ = speaker_means(torch.stack(embeddings), owners)
        self._cohort_spectrum = torch.stack(spectra).mean(dim=0)
        if self.plda:
            try:
                self._plda = fit_plda(torch.stack(embeddings), owners)
            except DataError as error:
                logger.warning("there is no test with PLDA: %s", error)

    @torch.no_grad()
    def _spectrum(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Give the mean of the features over time: (B, F)."""
        features, frames = self.network.features(waveform, lengths)
        total = mask_padding(features.float(), frames).sum(dim=1)
        return total / frames.clamp(min=1).unsqueeze(1)

    def evaluate(self, outputs: Tensor, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Keep the embeddings of a validation; give those of a test, in each condition."""
        if stage is not Stage.TEST:
            self._found += [("", i, e.float().cpu()) for i, e in zip(batch.ids, outputs)]
            return []
        made = {"": outputs, "mean-log-mel": self._spectrum(*batch.waveform)}
        for seconds in self.test_seconds:
            size = round(seconds * self.network.sample_rate)
            waveform, lengths = batch.waveform
            made[f"{seconds:g}s"] = self.network(*middle(waveform, lengths, size))
        return [
            {"id": name, "condition": condition, "embedding": embedding.float().cpu()}
            for condition, embeddings in made.items()
            for name, embedding in zip(batch.ids, embeddings)
        ]

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Score the trials in each condition."""
        found = [(row["condition"], row["id"], row["embedding"]) for row in rows]
        made = {split: self._rows(split, "", found)}
        for condition in (*(f"{seconds:g}s" for seconds in self.test_seconds), "mean-log-mel"):
            made[f"{split}@{condition}"] = self._rows(split, condition, found)
        if len(self._cohort_spectrum):
            name = "mean-log-mel-centered"
            centered = [(name, i, e - self._cohort_spectrum)
                        for condition, i, e in found if condition == "mean-log-mel"]  # fmt: skip
            made[f"{split}@{name}"] = self._rows(split, name, centered)
        if self.cohort_size is not None and len(self._cohort):
            try:
                made[f"{split}@as-norm"] = self._rows(split, "", found, name="as-norm")
            except ValueError as error:  # a model that gives all voices one embedding
                logger.warning("%s is not tested with AS-norm: %s", split, error)
        if self._plda is not None:
            made[f"{split}@plda"] = self._rows(split, "", found, name="plda")
        return made

    def _rows(
        self, split: str, condition: str, found: Sequence[Found], *, name: str | None = None
    ) -> list[dict[str, Any]]:
        """Score a split's trials with the embeddings of a condition; one row a trial."""
        trials: list[Trial] = self.trials[split]
        embeddings = {utterance: e for kind, utterance, e in found if kind == condition}
        score = pair_scores
        if name == "as-norm":
            size = min(self.cohort_size or 0, len(self._cohort))
            score = AdaptiveSNorm(self._cohort, top=size).pair_scores
        elif name == "plda" and self._plda is not None:
            score = self._plda.pair_scores
        rows = trial_rows(trials, score_trials(trials, embeddings, score))
        for row, speakers in zip(rows, trial_speakers(trials)):
            row["speakers"] = list(speakers)
        return rows


def middle(waveform: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut each item of ``(B, T)`` to the samples in its middle, at most ``size``."""
    starts = ((lengths - size) // 2).clamp(min=0)
    kept = lengths.clamp(max=size)
    places = starts.unsqueeze(1) + torch.arange(int(kept.max()), device=lengths.device)
    return waveform.gather(1, places.clamp(max=waveform.shape[1] - 1)), kept


if __name__ == "__main__":
    run(SpeakerVerification)
