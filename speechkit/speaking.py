"""Tests of text to speech: texts are spoken, and what is heard is measured."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from speechkit.conditions import by_condition, example_numbers, keep_example, split_name
from speechkit.data.audio import resample
from speechkit.data.batch import Batch
from speechkit.data.errors import DataError
from speechkit.data.manifest import Utterance
from speechkit.files import atomic_write
from speechkit.models.synthesizer import Synthesizer
from speechkit.models.vocoder import NeuralVocoder, Vocoder
from speechkit.models.voices import ReferenceVoice, VoiceTable
from speechkit.nn.acoustic import GeneratedMel
from speechkit.nn.masking import Padded
from speechkit.parallel import wait_for
from speechkit.speaking_references import (
    SHORTEST,
    choose_references,
    read_clip,
    reference_audio,
)

if TYPE_CHECKING:
    from speechkit.models.speaker import SpeakerEncoder

SPOKEN, COPY, RECORDING = "", "copy-synthesis", "recording"
_ENROLLED = 5  # recordings that a voice is known by


class _Heard(NamedTuple):
    """What is heard in a condition: waveforms with samples, and how they were made, if of text."""

    condition: str
    waveforms: Padded
    made: GeneratedMel | None = None
    work_seconds: float | None = None

    def work_seconds_of(self, index: int) -> float | None:
        """Give an item's part of the work on the batch, by its length."""
        if self.work_seconds is None:
            return None
        lengths = self.waveforms.lengths
        return self.work_seconds * float(lengths[index] / lengths.sum().clamp(min=1))


class SpokenTest:
    """Speaks the texts of a test and measures what is heard, beside the recordings.

    There are three conditions: speech made of the text (the split's own name),
    ``<split>@copy-synthesis``, made of the recording's mel by the same vocoder, and
    ``<split>@recording``. The second is the bound that the vocoder sets, the third, which there is
    with one of them, the bound that the recogniser and the speaker encoder set.

    A model that takes the voice of a recording speaks each text in the voice of another recording
    of its speaker: the next one in the split's manifest, after the last the first. Only where there
    is none (of half a second at least) it hears the utterance itself, which the log counts; rows
    name it as ``voice_of``.

    Parameters
    ----------
    recognizer : str, optional
        Folder of a recogniser: its word and character errors tell how well one understands.
    speaker_encoder : str, optional
        Folder of a speaker encoder: cosines to the voice that was wanted, and to the others.
    vocoder : str, optional
        Folder of a vocoder; the model's own by default.
    num_examples : int
        Utterances of each test split, the first of its manifest, whose sound, mel and alignment are
        kept under ``test/<split>/`` and are in the report.
    seed : int
        Of what the model draws.

    Raises
    ------
    DataError
        If a folder is not there, or holds another kind of model; the option is named.
    """

    def __init__(
        self,
        *,
        recognizer: str | None = None,
        speaker_encoder: str | None = None,
        vocoder: str | None = None,
        num_examples: int = 4,
        seed: int = 0,
    ) -> None:
        self.recognizer = _opened("recognizer", recognizer, "asr", "transcribe")
        self.speaker_encoder: SpeakerEncoder | None
        self.speaker_encoder = _opened("speaker_encoder", speaker_encoder, "speaker", "verify")
        self.vocoder: Vocoder | None = _opened("vocoder", vocoder, "vocoder", "copy_synthesis")
        if isinstance(self.vocoder, NeuralVocoder):
            self.vocoder.fold_weight_norm()
        self.num_examples = num_examples
        self.seed = seed
        self._voices: dict[str, Tensor] = {}
        self._references: dict[str, Utterance] = {}
        self._examples: dict[str, int] = {}

    def check(self, model: Synthesizer) -> None:
        """Refuse, before a training, a vocoder that was made for other mels."""
        from speechkit.features.mel_settings import check_same_mel

        if self.vocoder is not None:
            check_same_mel(model.features, self.vocoder.features)

    # ---------------------------------------------------------------- voices

    def voice_names(self, model: Synthesizer, batch: Batch) -> list[str]:
        """Give the voice of each utterance: its speaker's.

        A text of a speaker whom a table of voices does not have is spoken in one of its voices,
        chosen by the utterance's id.
        """
        speakers = [str(utterance.speaker) for utterance in batch.utterance]
        if not isinstance(model.voices, VoiceTable):
            return speakers
        names = model.voices.names
        return [
            speaker if speaker in names else names[sum(name.encode()) % len(names)]
            for speaker, name in zip(speakers, batch.ids)
        ]

    def voice_ids(self, model: Synthesizer, batch: Batch) -> Tensor | None:
        """Give the numbers of the batch's voices, where the model has a table of them."""
        if not isinstance(model.voices, VoiceTable):
            return None
        ids = model.voices.ids(self.voice_names(model, batch))
        return ids.to(model.voices.table.weight.device)

    def prepare(
        self,
        utterances: Sequence[Utterance],
        known: Sequence[Utterance],
        *,
        model: Synthesizer,
        split: str,
    ) -> None:
        """Get ready for a split: whose sound is kept, and the voices that speech is compared with.

        Parameters
        ----------
        utterances : sequence of Utterance
            Of the split.
        known : sequence of Utterance
            Recordings of training, by which the voices are known first.
        model : Synthesizer
            What will speak.
        split : str
            Its name, for the log.
        """
        self._examples |= example_numbers(utterances, self.num_examples)
        if isinstance(model.voices, ReferenceVoice):
            self._references |= choose_references(utterances, split)
        if self.speaker_encoder is None:
            return
        chosen: dict[str, list[Utterance]] = {}
        for utterance in (*known, *utterances):
            mine = chosen.setdefault(str(utterance.speaker), [])
            if len(mine) < _ENROLLED and utterance.duration >= SHORTEST:
                mine.append(utterance)
        rate = self.speaker_encoder.sample_rate
        for speaker, mine in chosen.items():
            waveforms = [read_clip(utterance, rate) for utterance in mine]
            embeddings = F.normalize(self.speaker_encoder.embed_windows(waveforms), dim=1)
            self._voices[speaker] = F.normalize(embeddings.mean(dim=0), dim=0)

    # ---------------------------------------------------------------- rows

    def rows(
        self, model: Synthesizer, batch: Batch, *, folder: Path, split: str
    ) -> list[dict[str, Any]]:
        """Speak a batch, and give a row for each utterance and condition."""
        speakers = [str(utterance.speaker) for utterance in batch.utterance]
        texts = [plain_words(model.front_end.normalize(text)) for text in batch.text]
        # Of the tokens: pronouncing the texts once more takes time.
        pieces = [model.front_end.names(ids[:n].tolist()) for ids, n in zip(*batch.tokens)]
        rows = []
        for heard in self._conditions(model, batch):
            voices = speakers if heard.made is None else self.voice_names(model, batch)
            found = self._measure(model, batch, heard, voices, texts, pieces)
            for index, row in enumerate(found):
                row["condition"] = heard.condition
                if heard.made is not None and isinstance(model.voices, ReferenceVoice):
                    reference = self._references.get(batch.ids[index], batch.utterance[index])
                    row["voice_of"] = reference.id
                row.update(self._example(model, batch, heard, index, folder, split, pieces[index]))
            rows += found
        return rows

    def _conditions(self, model: Synthesizer, batch: Batch) -> Iterator[_Heard]:
        waveform, lengths = batch.waveform
        clips = Padded(waveform, lengths)
        if isinstance(model.voices, ReferenceVoice):
            clips = reference_audio(batch, self._references, model.sample_rate)
        vectors = model.voice_vectors(*clips, self.voice_ids(model, batch))
        vocoder = self._vocoder(model)
        wait_for(waveform.device)
        started = time.perf_counter()
        made = model.generate(*batch.tokens, speaker=vectors, seed=self.seed)
        spoken = vocoder(made.mel, made.lengths)
        wait_for(waveform.device)
        yield _Heard(SPOKEN, spoken, made, time.perf_counter() - started)
        yield _Heard(COPY, Padded(vocoder.copy_synthesis(waveform, lengths), lengths))
        if self.recognizer is not None or self.speaker_encoder is not None:
            yield _Heard(RECORDING, Padded(waveform, lengths))

    def _vocoder(self, model: Synthesizer) -> Vocoder:
        chosen = self.vocoder or model.own_vocoder
        return chosen.to(next(model.parameters()).device).eval()

    def _measure(
        self,
        model: Synthesizer,
        batch: Batch,
        heard: _Heard,
        voices: Sequence[str],
        texts: Sequence[str],
        pieces: Sequence[Sequence[str]],
    ) -> list[dict[str, Any]]:
        from speechkit.metrics.tts_results import spoken_row

        waveforms = [w[:n].float().cpu() for w, n in zip(*heard.waveforms)]
        recordings = [w[:n].float().cpu() for w, n in zip(*batch.waveform)]
        hypotheses: list[str | None] = [None] * len(batch)
        if self.recognizer is not None:
            found = self.recognizer.transcribe(waveforms, model.sample_rate)
            hypotheses = [plain_words(transcript.text) for transcript in found]
        similar = self._similarities(waveforms, model.sample_rate, voices)
        rows = []
        for index, utterance in enumerate(batch.utterance):
            own = str(utterance.speaker) == voices[index]
            made = heard.made
            alignment = None
            if made is not None:
                alignment = _own_alignment(made, index, len(pieces[index]))
            rows.append(
                spoken_row(
                    id=utterance.id,
                    text=texts[index],
                    waveform=waveforms[index],
                    # A voice that is not the recording's says nothing about distances to it.
                    recording=recordings[index] if own and heard.condition != RECORDING else None,
                    sample_rate=model.sample_rate,
                    hypothesis=hypotheses[index],
                    similarity=similar[index][0],
                    other_similarity=similar[index][1],
                    stopped=None if made is None else bool(made.stopped[index]),
                    alignment=alignment,
                    pieces=pieces[index],
                    voice=voices[index],
                    work_seconds=heard.work_seconds_of(index),
                )
            )
        return rows

    def _similarities(
        self, waveforms: Sequence[Tensor], sample_rate: int, voices: Sequence[str]
    ) -> list[tuple[float | None, float | None]]:
        """Give each waveform's cosine to its voice, and the largest one to another."""
        if self.speaker_encoder is None or not self._voices:
            return [(None, None)] * len(waveforms)
        rate = self.speaker_encoder.sample_rate
        heard = [resample(waveform, sample_rate, rate) for waveform in waveforms]
        # What said nothing at all still has a place in the table.
        heard = [F.pad(w, (0, max(0, rate // 2 - len(w)))) for w in heard]
        embeddings = F.normalize(self.speaker_encoder.embed_windows(heard), dim=1)
        result: list[tuple[float | None, float | None]] = []
        for embedding, voice in zip(embeddings, voices):
            cosines = {name: float(embedding @ other) for name, other in self._voices.items()}
            own = cosines.pop(voice, None)
            result.append((own, max(cosines.values(), default=None)))
        return result

    def _example(
        self,
        model: Synthesizer,
        batch: Batch,
        heard: _Heard,
        index: int,
        folder: Path,
        split: str,
        pieces: Sequence[str],
    ) -> dict[str, Any]:
        """Keep the sound of the first utterances of a split, and what it was made of."""
        number = self._examples.get(batch.ids[index])
        if number is None:
            return {}
        name = split_name(split, heard.condition)
        size = int(heard.waveforms.lengths[index])
        waveform = heard.waveforms.data[index, :size].float().cpu()
        row = keep_example(folder, name, number, waveform[None], model.sample_rate)
        if heard.made is not None:
            arrays = Path("test", name, "arrays", f"{number:03d}.npz")
            frames = int(heard.made.lengths[index])
            write_arrays(
                folder / arrays,
                mel=heard.made.mel[index, :frames],
                alignment=_own_alignment(heard.made, index, len(pieces)),
                pieces=pieces,
            )
            row["arrays"] = arrays.as_posix()
        return row

    @staticmethod
    def parts(split: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Divide rows by condition."""
        return by_condition(split, rows)


def _opened(option: str, folder: str | None, task: str, method: str) -> Any:
    """Open the model of an option of the test; it must have a method that tells its kind."""
    import speechkit

    if not folder:
        return None
    try:
        model = speechkit.load(folder)
    except (ValueError, OSError) as error:
        raise DataError(
            f"spoken_test.{option}: {error}. Give a model folder that recipes/{task} made, or null"
        ) from error
    if not hasattr(model, method):
        raise DataError(
            f"spoken_test.{option}: {folder} holds a {type(model).__name__}, which is no "
            f"{option.replace('_', ' ')}; give a model folder that recipes/{task} made, or null"
        )
    return model


def plain_words(text: str) -> str:
    """Give a text's words in capitals, without punctuation: as they are compared.

    Examples
    --------
    >>> plain_words("Don't go, now!")
    "DON'T GO NOW"
    """
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.replace("’", "'"))
    return " ".join(kept.upper().split())


def _own_alignment(made: GeneratedMel, index: int, symbols: int) -> Tensor:
    """Give an item's alignment without padding: (T', U)."""
    alignment = made.alignment[index, :, :symbols]
    return alignment[alignment.sum(1) > 0]


def write_arrays(path: Path, *, mel: Tensor, alignment: Tensor, pieces: Sequence[str]) -> None:
    """Keep what a picture of speech is made of: ``mel``, ``alignment`` and ``pieces``.

    Parameters
    ----------
    path : Path
        An ``.npz`` file, which `numpy.load` reads without pickle.
    mel : Tensor
        Shape ``(T, num_mels)``.
    alignment : Tensor
        Shape ``(T', U)``.
    pieces : sequence of str
        The U symbols.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        "mel": mel.float().cpu().numpy().astype(np.float16),
        "alignment": alignment.float().cpu().numpy().astype(np.float16),
        "pieces": np.array(list(pieces)),
    }
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())
