"""Train and test a speech recogniser.

    python recipes/asr/train.py recipes/asr/hparams/toy_ctc.yaml

The YAML says which corpus, features, encoder and schedule; this file what a batch goes through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechkit.brain import Brain
from speechkit.data.batch import Batch, Failure
from speechkit.data.randomness import item_generator
from speechkit.data.specaugment import SpecAugment
from speechkit.decoding.ctc import greedy
from speechkit.losses.ctc import ctc_loss, min_frames
from speechkit.models.asr import CTCOutput
from speechkit.run import run
from speechkit.training import Stage


class Recognition(Brain):
    """A CTC recogniser's training.

    Parameters
    ----------
    spec_augment : SpecAugment, optional
        Masks on the features, in training only.
    decoder : callable, optional
        The search of the test; greedy by default, and always greedy in validation.
    **kwargs
        What :class:`speechkit.brain.Brain` takes.
    """

    scorer = "asr"

    def __init__(
        self,
        *,
        spec_augment: SpecAugment | None = None,
        decoder: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec_augment = spec_augment
        self.decoder = decoder

    def compute_forward(self, batch: Batch, stage: Stage) -> CTCOutput:
        """Go from waveforms to log-probabilities, through SpecAugment in training."""
        transform = None
        if stage is Stage.TRAIN and self.spec_augment is not None:
            # Masks have a stream of their own: those of the waveform's augmentation end in the id.
            generators = [item_generator(self.seed, batch.epoch, f"{i}/spec") for i in batch.ids]
            transform = functools.partial(self.spec_augment, generators=generators)
        return self.forward(*batch.waveform, feature_transform=transform)

    def compute_objectives(self, outputs: CTCOutput, batch: Batch, stage: Stage) -> Tensor:
        """Give the CTC loss of each utterance, divided by its number of labels."""
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
        losses = ctc_loss(*outputs, targets, possible) / target_lengths.clamp(min=1)
        return losses.masked_fill(short, 0.0)

    def evaluate(self, outputs: CTCOutput, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give reference and hypothesis of each utterance."""
        if stage is Stage.TEST and self.decoder is not None:
            best = [nbest[0] for nbest in self.decoder(*outputs)]
        else:
            best = greedy(*outputs)
        tokenizer: Any = self.model.tokenizer
        return [
            {
                "id": utterance.id,
                "reference": text,
                "hypothesis": tokenizer.decode(hypothesis.tokens),
                "score": hypothesis.score,
                "speaker": utterance.speaker,
                "audio": utterance.audio,
                "start": utterance.start,
                "duration": utterance.duration,
            }
            for utterance, text, hypothesis in zip(batch.utterance, batch.text, best)
        ]


if __name__ == "__main__":
    run(Recognition)
