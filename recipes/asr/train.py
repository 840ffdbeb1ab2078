"""Train and test a speech recogniser.

    python recipes/asr/train.py recipes/asr/hparams/toy_ctc.yaml

The YAML says which corpus, features, encoder, decoder and schedule; this file what a batch goes
through. `ctc_weight` is the dial between the two losses: 1 trains CTC alone, 0 attention alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speechkit.brain import Brain
from speechkit.data.batch import Batch, Failure
from speechkit.data.randomness import item_generator
from speechkit.data.specaugment import SpecAugment
from speechkit.decoding.ctc import greedy
from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.losses.ctc import ctc_loss, min_frames
from speechkit.models.asr import AttentionOutput, CTCOutput
from speechkit.monitor import AlignmentMonitor
from speechkit.nn.stepping import as_sentences
from speechkit.run import run
from speechkit.training import Stage

Search = Callable[..., Any]


class Recognition(Brain):
    """A recogniser's training: CTC, attention, or both.

    Parameters
    ----------
    spec_augment : SpecAugment, optional
        Masks on the features, in training only.
    search : callable or mapping, optional
        The search of the test; greedy by default, and always greedy in validation. A mapping tests
        with several: results of ``{"beam": ...}`` are of the split ``<split>@beam``, and null is
        greedy.
    ctc_weight : float
        Share of the CTC loss, in [0, 1]; the rest is the attention decoder's.
    label_smoothing : float
        Of the attention decoder's targets, in [0, 1).
    **kwargs
        What :class:`speechkit.brain.Brain` takes.
    """

    scorer = "asr"

    def __init__(
        self,
        *,
        spec_augment: SpecAugment | None = None,
        search: Search | Mapping[str, Search | None] | None = None,
        ctc_weight: float = 1.0,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec_augment = spec_augment
        self.searches = search if isinstance(search, Mapping) else {"": search}
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.monitor = AlignmentMonitor()
        self._check_options()

    def _check_options(self) -> None:
        model: Any = self.model
        has_decoder = hasattr(model, "decoder")
        has_ctc = not has_decoder or bool(model.ctc)
        if not 0.0 <= self.ctc_weight <= 1.0:
            raise ValueError(f"ctc_weight must be in [0, 1], got {self.ctc_weight}")
        if self.ctc_weight < 1.0 and not has_decoder:
            raise ValueError(f"ctc_weight is {self.ctc_weight}, but the model has no decoder")
        if self.ctc_weight > 0.0 and not has_ctc:
            raise ValueError(f"ctc_weight is {self.ctc_weight}, but the model was made with no CTC")
        for name, search in self.searches.items():
            if search is not None:  # not after hours of training
                try:
                    model.check_search(search)
                except ValueError as error:
                    raise ValueError(f"search{name and '.' + name}: {error}") from error

    def compute_forward(self, batch: Batch, stage: Stage) -> CTCOutput | AttentionOutput:
        """Go from waveforms to posteriors, through SpecAugment in training."""
        options: dict[str, Any] = {}
        if stage is Stage.TRAIN and self.spec_augment is not None:
            # Masks have a stream of their own: those of the waveform's augmentation end in the id.
            generators = [item_generator(self.seed, batch.epoch, f"{i}/spec") for i in batch.ids]
            options["feature_transform"] = functools.partial(
                self.spec_augment, generators=generators
            )
        if self.ctc_weight < 1.0:
            options["tokens"], options["token_lengths"] = batch.tokens
        return self.forward(*batch.waveform, **options)

    def compute_objectives(
        self, outputs: CTCOutput | AttentionOutput, batch: Batch, stage: Stage
    ) -> Tensor:
        """Give the weighted losses of each utterance, divided by its number of labels."""
        losses = torch.zeros(len(batch), device=outputs.lengths.device)
        if self.ctc_weight > 0.0:
            losses = losses + self.ctc_weight * self._ctc_loss(outputs, batch, stage)
        if self.ctc_weight < 1.0:
            losses = losses + (1 - self.ctc_weight) * self._attention_loss(outputs, batch)
        return losses

    def _ctc_loss(self, outputs: Any, batch: Batch, stage: Stage) -> Tensor:
        targets, target_lengths = batch.tokens
        needed = torch.tensor(
            [min_frames(labels[:size]) for labels, size in zip(targets, target_lengths)],
            device=targets.device,
        )
        short = outputs.lengths < needed
        if stage is Stage.TRAIN and bool(short.any()):
            self.note_failures(
                Failure(
                    batch.ids[i],
                    f"{int(needed[i])} frames are needed for its {int(target_lengths[i])} labels "
                    f"and the encoder gives {int(outputs.lengths[i])}; use a smaller stride, "
                    "larger tokens, or leave the utterance out",
                )
                for i in short.nonzero().flatten().tolist()
            )
        # No path spells such a transcript: its loss and its gradient would not be finite.
        possible = target_lengths.masked_fill(short, 0)
        losses = ctc_loss(outputs.log_probs, outputs.lengths, targets, possible)
        return (losses / target_lengths.clamp(min=1)).masked_fill(short, 0.0)

    def _attention_loss(self, outputs: Any, batch: Batch) -> Tensor:
        _, targets, lengths = as_sentences(*batch.tokens)
        losses = sequence_cross_entropy(
            outputs.decoded.logits, targets, lengths, label_smoothing=self.label_smoothing
        )
        return losses / lengths

    def evaluate(self, outputs: Any, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give reference and hypothesis of each utterance, in a test once for each search."""
        if stage is Stage.VALID:
            self._watch(outputs, batch)
        searches = self.searches if stage is Stage.TEST else {"": None}
        return [
            row for name in searches for row in self._decode(outputs, batch, name, searches[name])
        ]

    def _decode(
        self, outputs: Any, batch: Batch, name: str, search: Search | None
    ) -> Iterator[dict[str, Any]]:
        model: Any = self.model
        if search is None and self.ctc_weight == 1.0:
            search = greedy  # the decoder, if there is one, has not learned anything
        found = model.decode(outputs, search)
        for utterance, text, n_best in zip(batch.utterance, batch.text, found):
            yield {
                "id": utterance.id,
                "reference": text,
                "hypothesis": model.tokenizer.decode(n_best[0].tokens),
                "score": n_best[0].score,
                "search": name,
                "speaker": utterance.speaker,
                "audio": utterance.audio,
                "start": utterance.start,
                "duration": utterance.duration,
            }

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Score each search apart."""
        return {
            f"{split}@{name}" if name else split: [row for row in rows if row["search"] == name]
            for name in self.searches
        }

    def _watch(self, outputs: Any, batch: Batch) -> None:
        tokenizer: Any = self.model.tokenizer
        decoded = getattr(outputs, "decoded", None)
        self.monitor.add(
            batch.ids,
            [utterance.duration for utterance in batch.utterance],
            outputs.lengths,
            log_probs=outputs.log_probs if self.ctc_weight > 0.0 else None,
            attention=decoded.attention if decoded is not None else None,
            tokens=batch.tokens.data,
            token_lengths=batch.tokens.lengths,
            pieces=tokenizer.pieces,
        )

    def end_validation(self) -> dict[str, float]:
        """Give blank rate and how the attention looks, with pictures and warnings."""
        position = self.position
        return self.monitor.end(self.tracker, epoch=position.epoch + 1, step=position.step)


if __name__ == "__main__":
    run(Recognition)
