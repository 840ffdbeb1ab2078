"""Test a speaker encoder at telling who speaks when.

    python recipes/speaker/diarize.py --model results/librispeech_ecapa_small/1/model \
        --audio LibriSpeechMix/flac --rttm LibriSpeechMix/rttm --output_folder results/diarization

Each recording is compared with the RTTM file of its name, in conditions: with the number of
speakers estimated, with the true number given, and with one speaker for all that is heard, which is
the floor. Speech is found by energy, and nobody speaks at once, unless --activity names a detector
of both; --true_speech takes the speech from the reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import speechkit
from speechkit.data.audio import audio_info
from speechkit.data.errors import DataError
from speechkit.files import explain
from speechkit.metrics.diarization import Region, Turn, summarize
from speechkit.models.speaker import SpeakerEncoder
from speechkit.report import SECTIONS, worst_utterances, write_report
from speechkit.results import RunResults, write_test
from speechkit.run import command_line
from speechkit.speakers.activity import open_detectors
from speechkit.speakers.diarization import Diarizer
from speechkit.speakers.rttm import read_rttm

CONDITIONS = ("estimated", "given-number", "one-speaker")
SUFFIXES = (".flac", ".wav")


def main() -> int:
    """Run the command line."""
    options = _parser().parse_args()
    try:
        diarize(options)
    except (DataError, ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"error: {explain(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Test a speaker encoder at diarization.")
    parser.add_argument("--model", required=True, help="a model folder of a speaker encoder")
    parser.add_argument("--audio", required=True, type=Path, help="a folder of recordings")
    parser.add_argument("--rttm", required=True, type=Path, help="a folder of <recording>.rttm")
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--window", type=float, default=1.5, help="seconds (default: %(default)s)")
    parser.add_argument("--hop", type=float, default=0.5, help="seconds (default: %(default)s)")
    parser.add_argument("--max_speakers", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--threshold", type=float, help="(default: the model's own)")
    parser.add_argument("--activity", help="a model folder that finds speech and overlap")
    parser.add_argument("--true_speech", action="store_true", help="speech is where the RTTM says")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def diarize(options: argparse.Namespace) -> None:
    """Diarize all recordings in all conditions, and write the numbers and the page."""
    model = speechkit.load(options.model, device=options.device)
    if not isinstance(model, SpeakerEncoder):
        raise DataError(f"{options.model}: holds a {type(model).__name__}, no speaker encoder")
    diarizer = Diarizer(
        model.embed_windows,
        sample_rate=model.sample_rate,
        window=options.window,
        hop=options.hop,
        max_speakers=options.max_speakers,
        threshold=model.decision_threshold if options.threshold is None else options.threshold,
        **open_detectors(options.activity, device=options.device)._asdict(),
    )
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CONDITIONS}
    for path in recordings(options.audio):
        reference = reference_of(path, options.rttm)
        for condition, row in compare(diarizer, path, reference, options.true_speech).items():
            rows[condition].append(row)
    results = {}
    for condition, own in rows.items():
        split = f"test@{condition}"
        results[split] = summarize(own)
        write_test(options.output_folder, split, own, "diarization", results[split])
        print(
            f"{split}: " + "  ".join(f"{r.metric} {r.value:.2f} {r.unit}" for r in results[split])
        )
    record = RunResults(
        recipe="diarization",
        command=command_line(sys.argv[1:]),
        seed=0,
        results=results,
        device=options.device,
    )
    record.write(options.output_folder / "RESULTS.json")
    # That section is about texts.
    sections = [section for section in SECTIONS if section is not worst_utterances]
    print(write_report(options.output_folder, sections=sections))


def recordings(folder: Path) -> list[Path]:
    """List the recordings of a folder."""
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no recordings ({', '.join(SUFFIXES)})")
    return found


def reference_of(path: Path, folder: Path) -> list[Turn]:
    """Read the turns of a recording; a file of one recording may call it by another name."""
    place = folder / f"{path.stem}.rttm"
    turns = read_rttm(place)
    if path.stem not in turns and len(turns) != 1:
        raise DataError(f"{place}: has {len(turns)} recordings, and none is called {path.stem}")
    return turns.get(path.stem) or next(iter(turns.values()))


def compare(
    diarizer: Diarizer, path: Path, reference: list[Turn], true_speech: bool
) -> dict[str, dict[str, Any]]:
    """Make a recording's row in each condition."""
    from speechkit.data.audio import read_audio

    info = audio_info(path)
    duration = info.num_samples / info.sample_rate
    waveform, _ = read_audio(path, sample_rate=diarizer.sample_rate)
    rate = diarizer.sample_rate
    regions = spoken(reference) if true_speech else diarizer.activity(waveform, rate)
    regions = [(start, min(end, duration)) for start, end in regions if start < duration]
    number = len({turn.speaker for turn in reference})
    found = {
        "estimated": diarizer(waveform, regions=regions).turns,
        "given-number": diarizer(waveform, regions=regions, num_speakers=number).turns,
        "one-speaker": [Turn(start, end, "speaker_1") for start, end in regions],
    }
    return {
        name: {
            "id": path.stem,
            "reference": [list(turn) for turn in reference],
            "hypothesis": [list(turn) for turn in turns],
            "regions": [[0.0, duration]],
            "audio": str(path.absolute()),
            "speakers_found": len({turn.speaker for turn in turns}),
        }
        for name, turns in found.items()
    }


def spoken(turns: list[Turn]) -> list[Region]:
    """Join turns to the stretches in which somebody speaks."""
    joined: list[list[float]] = []
    for turn in sorted(turns):
        if joined and turn.start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], turn.end)
        else:
            joined.append([turn.start, turn.end])
    return [(start, end) for start, end in joined]


if __name__ == "__main__":
    raise SystemExit(main())
