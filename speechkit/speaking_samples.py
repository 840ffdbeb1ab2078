"""What a training of text to speech leaves beside its weights: samples to hear, and mels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from speechkit import distributed
from speechkit.data.audio import write_audio
from speechkit.data.batch import Batch
from speechkit.data.manifest import Utterance, write_manifest
from speechkit.data.mel_files import write_mel
from speechkit.data.splits import SplitData
from speechkit.models.synthesizer import Synthesizer
from speechkit.models.voices import ReferenceVoice
from speechkit.speaking import write_arrays
from speechkit.speaking_frames import leave_out_short
from speechkit.tracking import Tracker

logger = logging.getLogger(__name__)


def show_sentences(
    model: Synthesizer,
    sentences: Sequence[str],
    tracker: Tracker,
    *,
    step: int,
    batch: Batch,
) -> dict[str, float]:
    """Speak fixed sentences, put sound, mel and alignment into TensorBoard, and judge them.

    All processes of a training speak; rank 0 alone writes.

    Parameters
    ----------
    model : Synthesizer
        As it is in training.
    sentences : sequence of str
        Each in another voice of the table, in turn.
    tracker : Tracker
        Of the run. What the last validation spoke is also kept: ``samples/000.wav`` and ``.npz``.
    step : int
        When.
    batch : Batch
        Whose longest recording is the reference of models that take one.

    Returns
    -------
    dict
        ``alignment_score``, the mean of the alignments', and ``stopped``, the share of sentences
        that ended by themselves.
    """
    from speechkit.plots_speech import speech_figure

    scores, stopped = [], []
    for number, sentence in enumerate(sentences):
        speech = model.synthesize(sentence, **_voice(model, number, batch))
        scores.append(speech.alignment_score)
        stopped.append(float(speech.stopped))
        if not distributed.is_main():
            continue
        name = f"sentence {number + 1}"
        rate = speech.sample_rate
        tracker.audio(name, speech.waveform.numpy(), rate, step)
        pieces = [piece for part in speech.sentences for piece in part.pieces]
        figure = speech_figure(speech.mel.numpy(), speech.alignment.numpy(), pieces)
        tracker.image(name, figure, step)
        path = tracker.folder / "samples" / f"{number:03d}.wav"
        write_audio(path, speech.waveform[None], rate)
        write_arrays(
            path.with_suffix(".npz"), mel=speech.mel, alignment=speech.alignment, pieces=pieces
        )
    return {"alignment_score": float(np.mean(scores)), "stopped": float(np.mean(stopped))}


def _voice(model: Synthesizer, number: int, batch: Batch) -> dict[str, Any]:
    """Choose the voice of a sentence."""
    if isinstance(model.voices, ReferenceVoice):
        waveform, lengths = batch.waveform
        longest = int(lengths.argmax())  # one of less than half a second is no reference
        clip = waveform[longest, : int(lengths[longest])]
        return {"reference": clip, "sample_rate": model.sample_rate}
    names = model.voice_names
    return {"voice": names[number % len(names)]} if names else {}


@torch.no_grad()
def export_mels(
    model: Synthesizer, data: SplitData, out: Path, voice_ids: Any, device: torch.device
) -> dict[str, Path]:
    """Write each utterance's mel as the model makes it from the text and the mel before.

    That is what a vocoder meets in use, and what it is fine-tuned on (Kong et al. 2020, HiFi-GAN,
    section 4.4). Beside each is the audio that it belongs to, as the data's transforms made it
    (trimmed, say). Each split has a manifest, whose rows are those of the data with that audio and
    with ``mel``, a file that `speechkit.data.mel_files.LoadWithMel` reads. An utterance that the
    model cannot align (`speechkit.speaking_frames`) has none, and a warning names it.

    Parameters
    ----------
    model : Synthesizer
        A trained one.
    data : SplitData
        Of the run.
    out : Path
        A folder.
    voice_ids : callable
        From a batch to the numbers of its voices, or None.
    device : torch.device
        Where the model is.

    Returns
    -------
    dict
        Split to manifest.
    """
    model.eval()
    out = out.absolute()
    manifests = {}
    for split in data.splits:
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Utterance] = []
        for batch in data.eval_loader(split):
            batch = leave_out_short(model, batch).to(device)
            for failure in batch.failures:
                logger.warning("%s: no mel of %s: %s", split, *failure)
            if not len(batch):
                continue
            pitch = batch.pitch.data if "pitch" in batch else None
            output = model(*batch.tokens, *batch.waveform, voice_ids(batch), pitch)
            mels: Tensor = output.outputs.mel
            if model.norm is not None:
                mels = cast(Any, model.norm).restore(mels, output.mels.lengths)
            sizes = zip(output.mels.lengths.tolist(), batch.waveform.lengths.tolist())
            for index, (frames, samples) in enumerate(sizes):
                path = folder / f"{len(rows):06d}.safetensors"
                write_mel(path, mels[index, :frames], model.features)
                waveform = batch.waveform.data[index, :samples]
                rows.append(_with_files(batch.utterance[index], path, waveform, model.sample_rate))
        manifests[split] = out / f"{split}.jsonl"
        write_manifest(manifests[split], rows)
        logger.info("%d mels: %s", len(rows), manifests[split])
    return manifests


def _with_files(utterance: Utterance, mel: Path, waveform: Tensor, sample_rate: int) -> Utterance:
    """Give the row of an utterance with its mel's file, and write the audio beside that."""
    audio = mel.with_suffix(".wav")
    write_audio(audio, waveform.float(), sample_rate)
    return replace(
        utterance,
        audio=str(audio),
        start=0.0,
        duration=len(waveform) / sample_rate,
        sample_rate=sample_rate,
        extra={**utterance.extra, "mel": str(mel)},
    )
