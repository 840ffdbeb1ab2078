"""Train and test a neural language model.

    python recipes/lm/train.py recipes/lm/hparams/toy_lstm.yaml

The YAML says which text, labels, network and schedule; this file what a batch goes through. An
n-gram model is counted, not trained: ``recipes/lm/ngram.py``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from speechkit.brain import Brain
from speechkit.data.batch import Batch
from speechkit.losses.cross_entropy import sequence_cross_entropy
from speechkit.nn.stepping import as_sentences
from speechkit.run import run
from speechkit.training import Stage


class Likelihoods(NamedTuple):
    """Negative log-likelihood of each line in nats ``(B,)``, and over how many labels ``(B,)``."""

    nll: Tensor
    num_events: Tensor


class LanguageModeling(Brain):
    """A language model's training: each label of a line, and its end, from what is before it."""

    scorer = "lm"

    def compute_forward(self, batch: Batch, stage: Stage) -> Likelihoods:
        """Go from labels to the likelihood of each line."""
        inputs, targets, lengths = as_sentences(*batch.tokens)
        logits = self.forward(inputs, lengths)
        return Likelihoods(sequence_cross_entropy(logits, targets, lengths), lengths)

    def compute_objectives(self, outputs: Likelihoods, batch: Batch, stage: Stage) -> Tensor:
        """Give each line's loss per label; lines of a batch are of like length."""
        return outputs.nll / outputs.num_events

    def evaluate(self, outputs: Likelihoods, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the likelihood of each line, and what perplexity divides it by."""
        return [
            {
                "id": line,
                "text": text,
                "nll": nll,
                "num_tokens": events - 1,
                "num_words": len(text.split()),
            }
            for line, text, nll, events in zip(
                batch.ids, batch.text, outputs.nll.tolist(), outputs.num_events.tolist()
            )
        ]


if __name__ == "__main__":
    run(LanguageModeling)
