"""Train and test a classifier of sounds, emotions, or any label that an utterance has.

    python recipes/classification/train.py recipes/classification/hparams/esc10_conv2d.yaml --fold 1

The YAML says which corpus, labels, network and augmentation; this file what a batch goes through.
With ``--fold all``, each fold of the corpus is held out in turn.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.brain import Brain
from speechkit.data.batch import Batch
from speechkit.data.errors import DataError, listing
from speechkit.data.labels import LabelSet, check_labels, labels_of
from speechkit.data.mixup import Mixup
from speechkit.data.randomness import item_generator
from speechkit.data.specaugment import SpecAugment
from speechkit.losses.classification import classification_loss
from speechkit.metrics.classification import score_row
from speechkit.rotation import run_folds
from speechkit.training import Stage


class Scores(NamedTuple):
    """What a batch's forward pass gives: logits and targets, ``(B, C)`` each."""

    logits: Tensor
    targets: Tensor


class Classification(Brain):
    """A classifier's training; its labels are those of the model.

    Parameters
    ----------
    field : str
        Which field of a manifest's row holds the label, or the list of the labels.
    weights : Tensor, optional
        Of each label, against imbalance: `speechkit.data.labels.class_weights`.
    label_smoothing : float
        Share of a target that goes to all labels alike, in [0, 1).
    mixup : Mixup, optional
        Adds recordings of a batch, and their labels, to each other; in training only.
    spec_augment : SpecAugment, optional
        Masks on the features, in training only.
    **kwargs
        What :class:`speechkit.brain.Brain` takes.

    Raises
    ------
    DataError
        If a row has no label, one that the model does not know, or another number than one where
        labels exclude each other.
    """

    scorer = "classification"

    def __init__(
        self,
        *,
        field: str = "label",
        weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        mixup: Mixup | None = None,
        spec_augment: SpecAugment | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        model: Any = self.network
        self.labels = LabelSet(names=model.labels)
        self.multi_label: bool = model.multi_label
        self.field = field
        self.weights = weights
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.spec_augment = spec_augment
        self._check_data()

    def _check_data(self) -> None:
        """Refuse what cannot be learnt or tested before anything is computed."""
        check_labels(self.labels, self.data.paths, field=self.field)
        utterances: dict[str, Any] = self.data.utterances  # type: ignore[attr-defined]
        bad = [
            f"{split}: {utterance.id!r} has {labels_of(utterance, self.field)}"
            for split, rows in utterances.items()
            for utterance in rows
            if not self.multi_label and len(labels_of(utterance, self.field)) != 1
        ]
        if bad:
            advice = "Correct these rows, or train with --model.multi_label true"
            raise DataError(listing(f"{len(bad)} rows without exactly one label", bad, advice))
        if self.weights is not None and len(self.weights) != len(self.labels):
            raise ValueError(
                f"{len(self.weights)} weights, but the model has {len(self.labels)} labels: leave "
                "weights out (--weights null), or make them of the labels of the model"
            )

    def compute_forward(self, batch: Batch, stage: Stage) -> Scores:
        """Go from waveforms to logits; in training through mixup and SpecAugment."""
        waveforms, lengths = batch.waveform
        names = [labels_of(utterance, self.field) for utterance in batch.utterance]
        targets = torch.stack([self.labels.multi_hot(found) for found in names]).to(lengths.device)
        options: dict[str, Any] = {}
        if stage is Stage.TRAIN and self.mixup is not None:
            waveforms, lengths, targets = self.mixup(
                waveforms, lengths, targets, self._generators(batch, "mixup")
            )
        if stage is Stage.TRAIN and self.spec_augment is not None:
            options["feature_transform"] = functools.partial(
                self.spec_augment, generators=self._generators(batch, "spec")
            )
        return Scores(self.forward(waveforms, lengths, **options), targets)

    def _generators(self, batch: Batch, purpose: str) -> list[torch.Generator]:
        """Make a stream for each item; that of the waveform's augmentation ends in the id."""
        return [item_generator(self.seed, batch.epoch, f"{name}/{purpose}") for name in batch.ids]

    def compute_objectives(self, outputs: Scores, batch: Batch, stage: Stage) -> Tensor:
        """Give the cross-entropy of each utterance, or the mean over its labels."""
        return classification_loss(
            outputs.logits,
            outputs.targets,
            multi_label=self.multi_label,
            weights=self.weights,
            label_smoothing=self.label_smoothing,
        )

    def evaluate(self, outputs: Scores, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the probabilities of each utterance."""
        model: Any = self.network
        rows = []
        for utterance, scores in zip(batch.utterance, model.probabilities(outputs.logits.float())):
            names = labels_of(utterance, self.field)
            label = names if self.multi_label else names[0]
            row = score_row(utterance.id, label, scores, self.labels.names)
            row |= {
                "audio": utterance.audio,
                "start": utterance.start,
                "duration": utterance.duration,
            }
            rows.append(row)
        return rows


if __name__ == "__main__":
    run_folds(Classification)
