"""Train and test a detector of voice activity and overlap: does anybody speak, or two at once.

    python recipes/voice_activity/train.py recipes/voice_activity/hparams/librispeech_vad.yaml

The YAML says which corpus, network and noise; this file what a batch goes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from speechkit.brain import Brain
from speechkit.conditions import by_condition
from speechkit.data.augment import AddNoise, Recordings
from speechkit.data.batch import Batch
from speechkit.data.conversations import FRAME_RATE
from speechkit.data.randomness import item_generator
from speechkit.losses.voice_activity import activity_loss
from speechkit.metrics.voice_activity import KINDS
from speechkit.models.voice_activity import VoiceActivity, frame_regions
from speechkit.nn.masking import Padded
from speechkit.run import run
from speechkit.speakers.activity import Region, energy_activity
from speechkit.training import Stage


class VoiceActivityDetection(Brain):
    """A detector's training on conversations that say how many people speak in each frame.

    A test is made in conditions: the conversations as they are and with noise, by the model and by
    energy (``energy``). Of overlap energy says nothing, so that all of it is missed there.

    Parameters
    ----------
    test_snr : sequence of float
        Signal-to-noise ratios in dB that a test is made at, beside the one without noise added.
    test_noise : manifest or audio files, optional
        The noise of these conditions, as in `speechkit.data.augment.AddNoise`; pink by default.
    **kwargs
        What :class:`speechkit.brain.Brain` takes.

    Raises
    ------
    ValueError
        If the model knows no overlap, or a frame of it is no whole number of labels.
    """

    scorer = "voice_activity"

    def __init__(
        self,
        *,
        test_snr: Sequence[float] = (),
        test_noise: Recordings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.test_snr = tuple(test_snr)
        self.test_noise = test_noise
        self._rate = self.detector.sample_rate
        self._noises = {
            f"{snr:g}dB": AddNoise(
                noise=test_noise, snr_db=(snr, snr), color="pink", sample_rate=self._rate
            )
            for snr in self.test_snr
        }
        if self.detector.num_levels < len(KINDS):
            raise ValueError(
                f"model.num_levels is {self.detector.num_levels}, and a test is of speech and of "
                f"overlap: it must be at least {len(KINDS)}"
            )
        self._step, rest = divmod(self.detector.stride * FRAME_RATE, self._rate)
        if rest or not self._step:
            raise ValueError(
                f"the model has {self._rate / self.detector.stride:g} frames a second, which must "
                f"divide the {FRAME_RATE} of the labels; change its strides"
            )

    @property
    def detector(self) -> VoiceActivity:
        """The model."""
        return self.network  # type: ignore[return-value]

    def compute_forward(self, batch: Batch, stage: Stage) -> Padded:
        """Give the logits of each frame."""
        logits: Padded = self.forward(*batch.waveform)
        return logits

    def compute_objectives(self, outputs: Padded, batch: Batch, stage: Stage) -> Tensor:
        """Give the binary cross-entropy of each conversation."""
        speakers = batch.speakers.data[:, :: self._step][:, : outputs.data.shape[1]]
        return activity_loss(outputs.data, speakers, outputs.lengths)

    def evaluate(self, outputs: Padded, batch: Batch, stage: Stage) -> list[dict[str, Any]]:
        """Give what was found and what is there; in a test in each condition."""
        rows = []
        for index, utterance in enumerate(batch.utterance):
            size = int(batch.waveform.lengths[index])
            clean = batch.waveform.data[index, :size].float().cpu()
            counts = batch.speakers.data[index, : int(batch.speakers.lengths[index])].cpu()
            duration = size / self._rate
            truth = {
                kind: frame_regions(counts > level, 1 / FRAME_RATE, duration)
                for level, kind in enumerate(KINDS)
            }
            for condition, found in self._found(utterance.id, clean, stage).items():
                row = {"id": utterance.id, "condition": condition, "duration": duration}
                for kind in KINDS:
                    row[kind] = {"reference": truth[kind], "hypothesis": found[kind]}
                rows.append(row)
        return rows

    def _found(self, name: str, clean: Tensor, stage: Stage) -> dict[str, dict[str, list[Region]]]:
        """Detect speech and overlap in a conversation, by condition."""
        model = self.detector
        sounds = {"": clean}
        if stage is Stage.TEST:
            for noise, add in self._noises.items():
                generator = item_generator(0, 0, f"{name}/noise")  # the same for every seed
                sounds[noise] = add({"waveform": clean}, generator)["waveform"]
        found = {}
        for condition, sound in sounds.items():
            found[condition] = dict(zip(KINDS, model.levels(sound, self._rate)))
            if stage is Stage.TEST:
                energy = "-".join(filter(None, ("energy", condition)))
                found[energy] = {"speech": energy_activity(sound, self._rate), "overlap": []}
        return found

    def parts(self, split: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide the rows by condition."""
        return by_condition(split, rows)


if __name__ == "__main__":
    run(VoiceActivityDetection)
