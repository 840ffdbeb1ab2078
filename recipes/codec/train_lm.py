"""Train a language model over a codec's codes, and measure what entropy coding saves with it.

    python recipes/codec/train_lm.py recipes/codec/hparams/speech_16khz_lm.yaml \
        --codec results/speech_16khz_small/1/model --manifests data/codec_librispeech

The YAML says which codec, recordings, sizes and schedule; this file what a batch goes through. The
codes are cut as an ``.skc`` file cuts them, in chunks of which each begins with a fresh model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.brain import Brain
from speechkit.coding.code_transformer import CodeTransformer
from speechkit.coding.integer_model import IntegerCodeModel
from speechkit.coding.savings import BlockSize, file_size, measure_blocks
from speechkit.data.batch import Batch
from speechkit.data.code_files import Rate
from speechkit.data.codes import CodeData, cut_blocks
from speechkit.data.errors import DataError
from speechkit.data.randomness import item_generator
from speechkit.metrics.codes import code_bits
from speechkit.metrics.results import Result
from speechkit.run import run
from speechkit.training import Stage


class CodeBits(NamedTuple):
    """Cross-entropy of each item at each rate in bits, and of how many codes: both ``(B, R)``."""

    bits: Tensor
    num_codes: Tensor


class CodeModeling(Brain):
    """A language model's training over the codes of a codec, for all of its rates.

    The distribution of a codebook's code depends on how many codebooks the model is given: their
    embeddings are summed. So training draws one of the codec's rates for each update (Défossez et
    al. 2022, "High fidelity neural audio compression", section 3.3), and evaluation goes through
    all of them. A test also writes the codes with the entropy coder, and reads them back.
    """

    scorer = "codes"
    data: CodeData
    model: CodeTransformer

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layout = self.data.layout
        sizes = (self.layout.num_codebooks, self.layout.codebook_size)
        if sizes != (self.model.num_codebooks, self.model.codebook_size):
            raise DataError(
                f"the model is for {self.model.num_codebooks} codebooks of "
                f"{self.model.codebook_size} codes, the codec has {sizes[0]} of {sizes[1]}; set "
                "--model.num_codebooks and --model.codebook_size"
            )
        self.predictor: IntegerCodeModel | None = None

    def compute_forward(self, batch: Batch, stage: Stage) -> CodeBits:
        """Go from codes to how many bits the model needs for them."""
        frames, lengths = batch.codes
        codes = frames.transpose(1, 2)  # (B, Q, T)
        if stage is Stage.TRAIN:
            codes = codes[:, : self._draw()]
            bits = code_bits(self.forward(codes, lengths), codes, lengths).sum(1, keepdim=True)
            return CodeBits(bits, lengths.unsqueeze(1) * codes.shape[1])
        counts = torch.tensor([rate.num_codebooks for rate in self.layout.rates])
        bits = torch.stack([self._bits(codes, lengths, n) for n in counts.tolist()], dim=1)
        return CodeBits(bits, lengths.unsqueeze(1) * counts.to(lengths.device))

    def compute_objectives(self, outputs: CodeBits, batch: Batch, stage: Stage) -> Tensor:
        """Give each item's bits per code, the mean over the rates."""
        return (outputs.bits / outputs.num_codes).mean(dim=1)

    def evaluate(self, outputs: CodeBits, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give the bits of each utterance at each rate; of a test, also the coded bytes."""
        rows: list[dict[str, Any]] = [
            {
                "id": name,
                "frames": frames,
                "rates": [
                    {"kbps": rate.kbps, "num_codebooks": rate.num_codebooks, "bits": value}
                    for rate, value in zip(self.layout.rates, values)
                ],
            }
            for name, frames, values in zip(
                batch.ids, batch.codes.lengths.tolist(), outputs.bits.tolist()
            )
        ]
        if stage is Stage.TEST:
            for index, rate in enumerate(self.layout.rates):
                for row, sizes in zip(rows, self._write(batch, rate)):
                    row["rates"][index] |= sizes
        return rows

    def test(self) -> dict[str, list[Result]]:
        """Make the integer model of the trained one, and test."""
        self.predictor = IntegerCodeModel.from_float(self.model)
        return super().test()

    def _draw(self) -> int:
        """Draw the codebooks of an update: each rate once in as many updates as there are rates.

        The same on all ranks, which so have equal work.
        """
        rates = self.layout.rates
        turn, place = divmod(self.position.step, len(rates))
        generator = item_generator(self.seed, turn, "speechkit/rates")
        order = torch.randperm(len(rates), generator=generator)
        return rates[int(order[place])].num_codebooks

    def _bits(self, codes: Tensor, lengths: Tensor, num_codebooks: int) -> Tensor:
        """Bits ``(B,)`` of the float model in float32, chunk by chunk."""
        size = self.layout.header(num_codebooks).chunk_frames
        blocks, frames, owners = cut_blocks(codes[:, :num_codebooks], lengths, size)
        # An utterance may be an hour: so many chunks at a time as the budget of a batch has.
        step = max(1, self.data.eval_batch_frames // size)
        with torch.autocast(codes.device.type, enabled=False):
            bits = [
                code_bits(self.forward(block, count), block, count).sum(1)
                for block, count in zip(blocks.split(step), frames.split(step))
            ]
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        return total.index_add(0, owners, torch.cat(bits).double())

    def _write(self, batch: Batch, rate: Rate) -> list[dict[str, float]]:
        """Write and read the codes of each utterance at a rate; how many bytes they take."""
        assert self.predictor is not None
        plain = self.layout.header(rate.num_codebooks)
        coded = self.layout.header(rate.num_codebooks, self.predictor.digest)
        codes, lengths = batch.codes.data.cpu().transpose(1, 2), batch.codes.lengths.cpu()
        blocks, frames, owners = cut_blocks(
            codes[:, : rate.num_codebooks], lengths, plain.chunk_frames
        )
        arrays = [np.asarray(b[:, :n]) for b, n in zip(blocks, frames.tolist())]
        sizes: list[list[BlockSize]] = [[] for _ in batch.ids]
        for owner, size in zip(owners.tolist(), measure_blocks(arrays, plain, self.predictor)):
            sizes[owner].append(size)
        return [
            {
                "packed_bytes": sum(s.packed_bytes for s in own),
                "coded_bytes": sum(s.coded_bytes for s in own),
                "predictor_bits": sum(s.predictor_bits for s in own),
                "packed_file_bytes": file_size(plain, [s.packed_bytes for s in own]),
                "coded_file_bytes": file_size(
                    coded, [min(s.packed_bytes, s.coded_bytes) for s in own]
                ),
            }
            for own in sizes
        ]


if __name__ == "__main__":
    run(CodeModeling)
