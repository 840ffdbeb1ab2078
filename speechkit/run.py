"""``run(BrainClass)``: command line -> seed -> prepare -> build -> fit -> test -> results."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from speechkit import distributed, pretrained
from speechkit.brain import Brain
from speechkit.checkpoint import CheckpointError
from speechkit.data.manifest import DataError
from speechkit.files import atomic_write, explain
from speechkit.hparams import Hparams, HparamsError, changes, parse_command_line, read_hparams
from speechkit.parallel import check_device
from speechkit.report import write_report
from speechkit.results import RunResults, environment
from speechkit.rng import seed_everything
from speechkit.signals import Terminated, termination_unwinds
from speechkit.tracking import setup_logging
from speechkit.training import Interrupted, TrainingError

logger = logging.getLogger(__name__)

FLAGS = ("resume_with_changes", "test_only", "debug")
OPTIONS = ("init_from", "device")
RUN_KEYS = ("seed", "output_folder", "prepare", "reinit")
GIVEN_BY_RUN = ("folder", "device", "seed")
USER_ERRORS = (
    CheckpointError, DataError, HparamsError, TrainingError,
    pretrained.PretrainedError, pretrained.MismatchError, ImportError,
)  # fmt: skip
# Changing these does not change what is trained.
NEUTRAL_KEYS = (
    "data.num_workers", "data.max_bad_share", "output_folder",
    "anchors", "metrics", "num_examples", "spoken_test", "export",  # of a test alone
)  # fmt: skip


def run(brain_class: type[Brain], argv: Sequence[str] | None = None) -> None:
    """Train and test as a YAML says: the body of every recipe's ``train.py``.

    ``python train.py hparams.yaml --key value --nested.key value`` overrides any key. Beside them:
    ``--init_from FOLDER`` starts from a model folder (``--reinit "[head]"`` names what does not
    come from it), ``--test_only`` skips training, ``--device cpu``, ``--resume_with_changes``
    resumes although hyperparameters differ, ``--debug`` shows tracebacks.

    Parameters
    ----------
    brain_class : type
        The task's Brain. The YAML's top-level keys are the names of its constructor's arguments.
    argv : sequence of str, optional
        The command line without the program's name; by default the process's own.

    Raises
    ------
    SystemExit
        With 1 after an error that the user can mend, with 128 + n after signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with termination_unwinds(), reported(arguments):
            _run(brain_class, arguments)
    except Interrupted as stop:
        logger.warning("saved; the same command resumes")
        raise SystemExit(128 + stop.signal_number) from None
    except KeyboardInterrupt as stop:
        if "--debug" in arguments:
            raise
        print("stopped; what was finished is kept, the same command goes on", file=sys.stderr)
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None


@contextlib.contextmanager
def reported(arguments: Sequence[str]) -> Iterator[None]:
    """Show an error that the user can mend and exit with 1; ``--debug`` lets it through."""
    try:
        yield
    except (*USER_ERRORS, OSError) as error:
        if "--debug" in arguments:
            raise
        shown = explain(error) if isinstance(error, OSError) else error
        print(f"error: {shown}", file=sys.stderr)
        raise SystemExit(1) from None


def brain_arguments(brain_class: type[Brain]) -> dict[str, bool]:
    """Give the names of a Brain's constructor arguments and whether each is required.

    Constructors that pass ``**kwargs`` on are followed up to :class:`Brain` itself.
    """
    names: dict[str, bool] = {}
    for cls in brain_class.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _run(brain_class: type[Brain], arguments: list[str]) -> None:
    yaml_path, overrides, options = parse_command_line(arguments, flags=FLAGS, options=OPTIONS)
    accepted = brain_arguments(brain_class)
    from_yaml = {name: needed for name, needed in accepted.items() if name not in GIVEN_BY_RUN}
    hparams = read_hparams(
        yaml_path,
        overrides,
        consumed=(*RUN_KEYS, *from_yaml),
        required=("seed", *(name for name, needed in from_yaml.items() if needed)),
    )
    seed = _seed(hparams)
    folder = _output_folder(hparams, yaml_path, seed)
    with distributed.session():
        # What cannot end well ends here, not after hours of preparation.
        device = _checked_options(options, folder)
        setup_logging(folder, main=distributed.is_main())
        with distributed.main_first():
            if distributed.is_main():
                _check_resume(hparams, folder, from_yaml, allowed=options["resume_with_changes"])
                _write_hparams(hparams, folder, arguments)
        brain = _make_brain(brain_class, hparams, folder, seed, device, from_yaml, options)
        _train_and_test(brain, yaml_path, arguments, options)
        # Its wrapped model holds the group of processes, which the session ends.
        del brain


def _make_brain(
    brain_class: type[Brain],
    hparams: Hparams,
    folder: Path,
    seed: int,
    device: str,
    from_yaml: dict[str, bool],
    options: dict[str, Any],
) -> Brain:
    built = _build(hparams, seed, [*from_yaml, "reinit"])
    reinit = built.pop("reinit", None) or ()
    if _tests_a_folder(options):
        built["model"] = _as_trained(built["model"], options["init_from"])
    elif options["init_from"]:
        _initialise(built["model"], options["init_from"], reinit)
    # What training draws (dropout) differs by rank; all else is drawn by utterance.
    seed_everything(seed + distributed.rank())
    with _building():
        return brain_class(**built, folder=folder, seed=seed, device=device)


def _train_and_test(
    brain: Brain, yaml_path: Path, arguments: list[str], options: dict[str, Any]
) -> None:
    if not options["test_only"]:
        brain.fit()
    if not _tests_a_folder(options):
        brain.load_best()
    elif distributed.is_main():
        logger.info("tested as it is in %s", options["init_from"])
    _finish(brain, yaml_path, arguments, options)


def _tests_a_folder(options: dict[str, Any]) -> bool:
    """Whether a finished model is tested as it is, and nothing is trained."""
    return bool(options["test_only"] and options["init_from"])


def _seed(hparams: Hparams) -> int:
    seed = hparams.value("seed")
    if not isinstance(seed, int):
        raise HparamsError([f"seed: {seed!r} is no whole number"])
    return seed


def _checked_options(options: dict[str, Any], folder: Path) -> str:
    """Check the program's own options and the output folder; give the device."""
    source = options["init_from"]
    if source:
        with distributed.main_first():
            pretrained.read_config(source)
        if options["test_only"] and any((folder / "checkpoints").glob("step-*.pt")):
            raise TrainingError(
                f"{folder} holds a trained run, whose results the test of {source} would replace; "
                "name another --output_folder"
            )
    elif options["test_only"] and not any((folder / "checkpoints").glob("step-*.pt")):
        raise TrainingError(
            f"--test_only: {folder / 'checkpoints'} holds no checkpoint; train first, or name a "
            "model folder with --init_from"
        )
    try:
        device = check_device(options["device"] or distributed.default_device())
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise TrainingError(
                f"the output folder {folder} cannot be written: {error.strerror}; name another "
                "with --output_folder"
            ) from error
    return device


@contextlib.contextmanager
def _building() -> Iterator[None]:
    """Report what constructors say of their arguments as a fault of the hyperparameters."""
    try:
        yield
    except USER_ERRORS:
        raise
    except (TypeError, ValueError) as error:
        # hyperpyyaml puts the class before the message.
        text = ": ".join(str(part) for part in error.args)
        raise HparamsError([f"{text} (--debug shows where)"]) from error


def _build(hparams: Hparams, seed: int, keys: Sequence[str]) -> dict[str, Any]:
    """Prepare the data on rank 0, then build everything: the same weights on every rank."""
    with distributed.main_first():
        if "prepare" in hparams:
            seed_everything(seed)
            with _building():
                prepare = hparams.build(["prepare"])["prepare"]
            prepare()
    seed_everything(seed)
    with _building():
        return hparams.build([key for key in keys if key in hparams])


def _output_folder(hparams: Hparams, yaml_path: Path, seed: int) -> Path:
    if "output_folder" in hparams:
        return Path(str(hparams.value("output_folder")))
    return Path("results") / yaml_path.stem / str(seed)


def _check_resume(
    hparams: Hparams, folder: Path, consumed: dict[str, bool], *, allowed: bool
) -> None:
    """Refuse to go on with other hyperparameters than the checkpoints were made with."""
    before = folder / "hparams.yaml"
    if not before.exists() or not any((folder / "checkpoints").glob("step-*.pt")):
        return
    old = read_hparams(before, {}, consumed=(*RUN_KEYS, *consumed))
    changed = [c for c in changes(old.flat(), hparams.flat()) if not _neutral(c[0])]
    if not changed:
        return
    table = "\n".join(f"  {key}: {was!r} -> {now!r}" for key, was, now in changed)
    if not allowed:
        raise HparamsError(
            [
                f"{folder} was trained with other hyperparameters:\n{table}\n"
                "  Use another --output_folder or --seed for a new run, or --resume_with_changes "
                "to go on from its last checkpoint with the new ones"
            ]
        )
    logger.warning("resuming with changes:\n%s", table)


def _neutral(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NEUTRAL_KEYS)


def _write_hparams(hparams: Hparams, folder: Path, arguments: list[str]) -> None:
    header = {"command": command_line(arguments), **environment()}
    lines = "".join(f"# {name}: {value}\n" for name, value in header.items())
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "hparams.yaml", lines + hparams.text)


def command_line(arguments: Sequence[str]) -> str:
    """Give the command of this process as a user would type it again."""
    script = Path(sys.argv[0])
    root = Path.cwd()
    shown = script.resolve().relative_to(root) if script.resolve().is_relative_to(root) else script
    return shlex.join(["python", str(shown), *arguments])


def _initialise(model: nn.Module, source: str, reinit: Sequence[str]) -> None:
    """Load what fits from a model folder; a new vocabulary gets new output layers."""
    parts = set(reinit)
    there = pretrained.load(source)
    _check_rates(model, there, source)
    other = _vocabularies_differ(model, there)
    if other or _labels_differ(model, there):
        new = set(getattr(model, "vocabulary_parts", ()))
        if new - parts:
            what = "tokenizer is a new one" if other else "labels are new ones"
            logger.info("the %s: %s starts fresh", what, ", ".join(sorted(new)))
        parts |= new
    report = pretrained.load_state(model, there.state_dict(), reinit=sorted(parts))
    logger.info("initialised from %s: %s", source, report)


def _as_trained(model: nn.Module, source: str) -> nn.Module:
    """Give the model of a folder as it is, for a test; the YAML's only says what data is made."""
    there = pretrained.load(source)
    _check_rates(model, there, source)
    if _vocabularies_differ(model, there):
        raise HparamsError(
            [
                f"--test_only: {source} has another tokenizer than this YAML, whose labels it does "
                "not know; test it with the YAML and the tokenizer that it was trained with"
            ]
        )
    return there


def _check_rates(model: nn.Module, there: nn.Module, source: str) -> None:
    rate, rate_there = (getattr(m, "sample_rate", None) for m in (model, there))
    if None not in (rate, rate_there) and rate != rate_there:
        raise HparamsError(
            [
                f"sample_rate: this YAML has {rate} Hz, the model in {source} {rate_there} Hz; "
                f"give --sample_rate {rate_there}"
            ]
        )


def _vocabularies_differ(model: nn.Module, there: nn.Module) -> bool:
    pieces, pieces_there = _vocabulary(model), _vocabulary(there)
    return None not in (pieces, pieces_there) and pieces != pieces_there


def _vocabulary(model: nn.Module) -> Any:
    """Give the pieces of a model's tokenizer, or the symbols of its front end."""
    if hasattr(model, "front_end"):
        return getattr(model.front_end, "symbols", None)
    return getattr(getattr(model, "tokenizer", None), "pieces", None)


def _labels_differ(model: nn.Module, there: nn.Module) -> bool:
    labels = [getattr(m, "labels", None) for m in (model, there)]
    return None not in labels and labels[0] != labels[1]


def _finish(brain: Brain, yaml_path: Path, arguments: list[str], options: dict[str, Any]) -> None:
    """Save the model folder, if it is new, test, and write RESULTS.json and the report."""
    if distributed.is_main() and not _tests_a_folder(options):
        pretrained.save(brain.network, brain.folder / "model")
    results = brain.test()
    if not distributed.is_main():
        return
    record = RunResults(
        recipe=yaml_path.stem,
        command=command_line(arguments),
        seed=brain.seed,
        manifest_sha256={split: brain.data.manifest_sha256(split) for split in brain.data.splits},
        results=results,
        device=str(brain.device),
    )
    record.write(brain.folder / "RESULTS.json")
    page = write_report(brain.folder)
    for split, values in results.items():
        shown = "  ".join(f"{r.metric} {r.value:.2f} {r.unit}".rstrip() for r in values[:3])
        logger.info("%s: %s", split, shown)
    logger.info("results: %s", brain.folder / "RESULTS.json")
    if (brain.folder / "model").exists():
        logger.info("model: %s", brain.folder / "model")
    logger.info("report: %s", page)
