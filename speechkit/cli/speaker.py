"""Commands about voices: ``embed``, ``verify``, ``enroll``, ``identify``, ``calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import speechkit
from speechkit.cli.common import OK, Add, UsageError, for_each, positive

if TYPE_CHECKING:
    import argparse

    from speechkit.models.speaker import SpeakerEncoder

_JSON = "a JSON object for each file"


def add_commands(add: Add) -> None:
    """Add the commands."""
    sub = add("embed", _embed, "Compute the speaker embedding of each audio file.")
    _add_files(sub)
    sub.add_argument(
        "--out", metavar="FILE", help="write a safetensors file, a tensor for each audio file "
        "under its path (default: a JSON object for each on standard output)",
    )  # fmt: skip

    sub = add("verify", _verify, "Tell whether two recordings are of one speaker.")
    sub.add_argument("first", metavar="FILE")
    sub.add_argument("second", metavar="FILE")
    sub.add_argument(
        "--threshold", type=float, metavar="X", help="decide by this score (default: the model's)"
    )
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="a JSON object")

    sub = add("enroll", _enroll, "Keep a speaker's voice in a file, beside those it has.")
    sub.add_argument("name", metavar="NAME", help="the speaker; recordings join those of before")
    _add_files(sub)
    sub.add_argument("--speakers", required=True, metavar="FILE", help="made if it is not there")

    sub = add("identify", _identify, "Find which enrolled speaker is heard in each audio file.")
    _add_files(sub)
    sub.add_argument("--speakers", required=True, metavar="FILE", help="see: speechkit enroll")
    sub.add_argument("--top", type=positive, default=5, metavar="N", help="(default: %(default)s)")
    sub.add_argument("--json", action="store_true", help=_JSON)

    sub = add("calibrate", _calibrate, "Fit a model's threshold on trials, and keep it.")
    sub.add_argument("--trials", required=True, metavar="LIST", help="lines: 1 or 0, two files")
    sub.add_argument("--root", required=True, metavar="DIR", help="what its files are relative to")
    sub.add_argument(
        "--prior", type=float, default=0.5, metavar="P",
        help="how often two recordings will be of one speaker (default: %(default)s)",
    )  # fmt: skip
    _add_model(sub, text="a model folder, which is written anew")


def _add_model(sub: argparse.ArgumentParser, text: str = "a model folder, or a hub id") -> None:
    sub.add_argument("--model", required=True, metavar="FOLDER", help=text)
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")


def _add_files(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("files", nargs="+", metavar="FILE", help="audio, of any rate and length")
    _add_model(sub)


def open_encoder(options: argparse.Namespace) -> SpeakerEncoder:
    """Open the model of a command; an error where it is no encoder of speakers."""
    from speechkit.models.speaker import SpeakerEncoder
    from speechkit.parallel import check_device

    model = speechkit.load(options.model, device=check_device(options.device))
    if not isinstance(model, SpeakerEncoder):
        raise UsageError(
            f"{options.model}: holds a {type(model).__name__}, which knows no voices; give the "
            "folder of a speaker encoder"
        )
    return model


def fingerprint(model: SpeakerEncoder) -> str:
    """Name a model by its weights, so that embeddings of two models are never compared."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- commands


def _embed(options: argparse.Namespace) -> int:
    model = open_encoder(options)
    found = {}

    def embed(file: str) -> None:
        embedding = model.embed(file)
        if options.out is None:
            print(json.dumps({"file": file, "embedding": embedding.tolist()}), flush=True)
        found[file] = embedding

    status = for_each(options.files, embed, options)
    if options.out is not None and found:
        from safetensors.torch import save

        from speechkit.files import atomic_write

        atomic_write(Path(options.out), save(found, {"model": fingerprint(model)}))
        print(options.out)
    return status


def _verify(options: argparse.Namespace) -> int:
    model = open_encoder(options)
    if options.threshold is not None:
        model.threshold = options.threshold
    verdict = model.verify(options.first, options.second)
    if options.json:
        print(json.dumps(verdict._asdict()))
        return OK
    if verdict.same_speaker is None:
        said = "no decision: the model has no threshold; see: speechkit calibrate"
    else:
        said = "one speaker" if verdict.same_speaker else "two speakers"
    if verdict.probability is not None:
        said += f"  probability of one speaker {verdict.probability:.3f}"
    print(f"score {verdict.score:.3f}  {said}")
    return OK


def _enroll(options: argparse.Namespace) -> int:
    from speechkit.data.audio import read_audio
    from speechkit.speakers.enrollment import EnrolledSpeakers, check_speech

    model = open_encoder(options)
    name = fingerprint(model)
    if Path(options.speakers).exists():
        speakers = EnrolledSpeakers.load(options.speakers, model=name)
    else:
        speakers = EnrolledSpeakers(embedding_size=model.embed_dim, model=name)
    waveforms = []
    for file in options.files:  # all of them, or nobody is enrolled
        waveform = read_audio(file, sample_rate=model.sample_rate)[0]
        check_speech(waveform, model.sample_rate, file)
        waveforms.append(waveform)
    speakers.add(options.name, model.embed(waveforms, model.sample_rate))
    speakers.save(options.speakers)
    count = speakers.counts[speakers.names.index(options.name)]
    print(f"{options.speakers}: {options.name} has {count} recordings, of {len(speakers)} speakers")
    return OK


def _identify(options: argparse.Namespace) -> int:
    from speechkit.speakers.calibration import calibration_from_dict
    from speechkit.speakers.enrollment import EnrolledSpeakers

    model = open_encoder(options)
    speakers = EnrolledSpeakers.load(options.speakers, model=fingerprint(model))
    threshold = model.threshold
    if threshold is None and model.calibration is not None:
        threshold = calibration_from_dict(model.calibration).threshold

    def identify(file: str) -> None:
        matches = speakers.identify(model.embed(file), top=options.top)
        known = None if threshold is None else matches[0].score >= threshold
        if options.json:
            listed = [match._asdict() for match in matches]
            print(json.dumps({"file": file, "known": known, "matches": listed}), flush=True)
            return
        said = "  ".join(f"{match.speaker} {match.score:.3f}" for match in matches)
        first = {True: matches[0].speaker, False: "nobody enrolled", None: "no decision"}[known]
        print(f"{file}: {first}  ({said})", flush=True)

    return for_each(options.files, identify, options)


def _calibrate(options: argparse.Namespace) -> int:
    from speechkit import pretrained
    from speechkit.speakers.calibration import calibrate
    from speechkit.speakers.trials import embed_files, read_trials, score_trials, trial_files

    if not Path(options.model).is_dir():
        raise UsageError(f"{options.model}: no folder here, so no threshold can be kept in it")
    model = open_encoder(options)
    trials = read_trials(options.trials, options.root)
    embeddings = embed_files(
        trial_files(trials), options.root, model.embed_windows, sample_rate=model.sample_rate
    )
    scores = score_trials(trials, embeddings)
    fitted = calibrate(scores, [trial.target for trial in trials], prior=options.prior)
    model.threshold = None  # one of before would go on deciding
    model.calibration = fitted.to_dict()
    extra = pretrained.read_config(options.model).get("extra")
    pretrained.save(model.cpu(), options.model, extra=extra)
    print(
        f"{options.model}: one speaker from a score of {fitted.threshold:.3f} on, by "
        f"{len(trials)} trials at a prior of {options.prior:g}"
    )
    return OK
