"""Train and test a neural audio codec.

    python recipes/codec/train.py recipes/codec/hparams/speech_16khz_small.yaml

The YAML says which audio, network, losses and bit rates; this file what a batch goes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit import distributed
from speechkit.codec_files.files import FileCodec
from speechkit.coding.savings import plain_file_size
from speechkit.conditions import (
    by_condition,
    example_numbers,
    keep_example,
    quality_row,
    split_name,
)
from speechkit.data.batch import Batch
from speechkit.data.randomness import item_seed
from speechkit.gan import GANBrain, Generated
from speechkit.losses.codec import MultiScaleMelLoss, waveform_l1
from speechkit.metrics.quality import low_pass
from speechkit.metrics.results import Result
from speechkit.models.codec import Codec, CodecOutput
from speechkit.nn.quantize import codebook_use, count_codes
from speechkit.run import run
from speechkit.training import Stage, TrainingError

METRICS = ("si_snr", "stoi", "estoi", "pesq", "visqol_speech", "mel")


class Condition(NamedTuple):
    """What is tested of a batch: its name, ``(B, C, T)``, and each item's bytes in a file."""

    name: str
    waveform: Tensor
    num_bytes: Sequence[int] = ()


class CodecTraining(GANBrain):
    """A codec's training: every batch at one of its bit rates.

    Parameters
    ----------
    mel : MultiScaleMelLoss, optional
        By default with EnCodec's windows.
    quantizer_start : int
        Updates before the quantizer takes part; there is no validation until then. Codebooks that
        begin with latents which mean something are all used, and low rates learn sooner.
    commitment_weight : float
        Of the quantizer's commitment loss, beside balanced losses whose gradient has norm 1.
    metrics : sequence of str
        What a test measures, see `speechkit.metrics.quality.measure`.
    anchors : sequence of float
        Cutoffs in Hz of low-passed references, which are tested beside the bit rates.
    num_examples : int
        Utterances of each test split, the first of its manifest, whose decoded sound is kept under
        ``test/<split>@<condition>/audio/`` and can be heard in the report.
    **kwargs
        What :class:`speechkit.gan.GANBrain` takes.
    """

    scorer = "codec"

    def __init__(
        self,
        *,
        mel: MultiScaleMelLoss | None = None,
        quantizer_start: int = 0,
        commitment_weight: float = 1.0,
        metrics: Sequence[str] = METRICS,
        anchors: Sequence[float] = (3500.0, 7000.0),
        num_examples: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mel = (mel or MultiScaleMelLoss(sample_rate=self.codec.sample_rate)).to(self.device)
        self.quantizer_start = quantizer_start
        self.commitment_weight = commitment_weight
        self.metrics = tuple(metrics)
        self.anchors = tuple(anchors)
        self.num_examples = num_examples
        self._counts = torch.zeros(0)

    @property
    def codec(self) -> Codec:
        """The model."""
        return self.network  # type: ignore[return-value]

    # ---------------------------------------------------------------- training

    def compute_forward(self, batch: Batch, stage: Stage) -> CodecOutput:
        """Code and decode; in training at a bit rate that is drawn, the same on all processes."""
        options: dict[str, Any] = {}
        if stage is not Stage.TEST and self._unquantized:
            options["num_codebooks"] = 0
        elif stage is Stage.TRAIN:
            seed = item_seed(self.seed, self.position.step, "bit rate")
            options["generator"] = torch.Generator().manual_seed(seed)
        waveform, lengths = batch.waveform
        output: CodecOutput = self.forward(waveform.transpose(1, 2), lengths, **options)
        return output

    @property
    def _unquantized(self) -> bool:
        return self.position.step < self.quantizer_start

    def generated(self, outputs: CodecOutput, batch: Batch) -> Generated:
        """Give the decoded and the original waveforms."""
        waveform, lengths = batch.waveform
        return Generated(outputs.estimate, waveform.transpose(1, 2), lengths)

    def distances(self, pair: Generated) -> dict[str, Tensor]:
        """Give the distances of waveforms and of mel spectra."""
        return {"l1": waveform_l1(*pair), "mel": self.mel(*pair)}

    def other_loss(self, outputs: CodecOutput) -> Tensor:
        """Give the commitment loss."""
        return self.commitment_weight * outputs.commitment.float()

    # ---------------------------------------------------------------- evaluation

    def test(self) -> dict[str, list[Result]]:
        """Test every split in all conditions."""
        # The model says it: a test alone (--test_only) knows nothing of updates.
        if not bool(getattr(self.codec.quantizer, "initialised", True)):
            raise TrainingError(
                f"quantizer_start is {self.quantizer_start}, but training ended after fewer "
                "updates, without codebooks; lower it or train longer"
            )
        return super().test()

    def validate(self) -> dict[str, float]:
        """Count the codes of a validation pass too; nothing to validate before there are any."""
        if self._unquantized:
            return {}
        self._counts = torch.zeros(self.codec.num_codebooks, self.codec.codebook_size)
        return super().validate()

    def end_validation(self) -> dict[str, float]:
        """Say how well each codebook is used."""
        use = codebook_use(distributed.all_reduce_sum(self._counts))
        numbers: dict[str, float] = {}
        for index, (share, perplexity) in enumerate(zip(use.share, use.perplexity), start=1):
            name = f"codebook {index:02}"
            numbers |= {f"{name}/use": float(share), f"{name}/perplexity": float(perplexity)}
        return numbers

    def evaluate(self, outputs: CodecOutput, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the measures of each utterance at each bit rate; of a few, also the sound."""
        if stage is not Stage.TEST:
            size = self.codec.codebook_size
            self._counts += count_codes(outputs.codes, outputs.lengths, codebook_size=size).cpu()
            return []
        waveform, lengths = batch.waveform
        original = waveform.transpose(1, 2)
        rows = []
        for condition in self._conditions(original, lengths):
            for index, size in enumerate(lengths.tolist()):
                estimate = condition.waveform[index, :, :size].float().cpu()
                reference = original[index, :, :size].float().cpu()
                row = self._row(batch.utterance[index], condition.name, reference, estimate)
                if condition.num_bytes:
                    seconds = size / self.codec.sample_rate
                    row["kbps"] = 8e-3 * condition.num_bytes[index] / seconds
                rows.append(row)
        return rows

    def _conditions(self, original: Tensor, lengths: Tensor) -> Iterator[Condition]:
        """Give what listeners would compare: each bit rate, the anchors, the hidden reference."""
        codec = self.codec
        files = FileCodec(codec, bytes(8))  # the id's value does not change a file's size
        encoded = codec.encode(original, lengths)
        for rate in codec.rates_kbps:
            count = codec.codebooks_for(rate)
            header = files.header(
                sample_rate=codec.sample_rate,
                channels=codec.channels,
                num_codebooks=count,
                coded=False,
            )
            sizes = [plain_file_size(header, frames) for frames in encoded.lengths.tolist()]
            decoded = codec.decode(encoded.codes[:, :count], *encoded[1:])
            yield Condition(f"{rate:g}kbps", decoded, sizes)
        for cutoff in self.anchors:
            filtered = low_pass(original, codec.sample_rate, cutoff)
            yield Condition(f"anchor-{cutoff:g}Hz", filtered)
        yield Condition("reference", original)

    def _row(
        self, utterance: Any, condition: str, reference: Tensor, estimate: Tensor
    ) -> dict[str, Any]:
        rate = self.codec.sample_rate
        row = quality_row(utterance, reference, estimate, rate, metrics=self.metrics)
        examples = example_numbers(self.data.utterances[self.split], self.num_examples)  # type: ignore[attr-defined]
        split, number = split_name(self.split, condition), examples.get(utterance.id)
        kept = keep_example(self.folder, split, number, estimate, rate)
        return {**row, "condition": condition, **kept}

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide the rows by condition."""
        return by_condition(split, rows)


if __name__ == "__main__":
    run(CodecTraining)
