"""One self-contained HTML page for a run: curves, numbers, and the utterances that went worst.

The page asks for nothing from elsewhere: pictures, sound and styles are inside it, and a content
security policy forbids the rest. It is made of sections, functions ``section(run) -> str`` that
return HTML (or an empty string when they have nothing to show), so that a task adds its own::

    write_report(folder, sections=[*SECTIONS, confusions])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechkit.data.manifest import DataError
from speechkit.files import atomic_write
from speechkit.metrics.results import Result
from speechkit.page import PAGE, STYLE, audio_player, escape, line_plot, spectrogram, table
from speechkit.report_classification import classification
from speechkit.report_codec import codec
from speechkit.report_run import MAX_SECONDS, Run, Section
from speechkit.report_separation import separation
from speechkit.report_speaker import diarization, speaker
from speechkit.report_tts import tts
from speechkit.report_vocoder import vocoder
from speechkit.tracking import plot_files

WORST = 8  # utterances shown of each split
MAX_TEXT = 100_000  # characters of hparams.yaml


def write_report(run_folder: str | Path, *, sections: Sequence[Section] | None = None) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    run_folder : str or Path
        With at least one of RESULTS.json, metrics.jsonl and hparams.yaml.
    sections : sequence of callables, optional
        What the page has, in order; `SECTIONS` by default.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        If the folder is not that of a run, or a file in it is broken.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}')
    >>> "<h2>Learning curves</h2>" in write_report(folder).read_text()
    True
    """
    run = Run.read(run_folder)
    body = "\n".join(filter(None, (make(run) for make in sections or SECTIONS)))
    page = run.folder / "report.html"
    title = escape(run.results.recipe if run.results else run.folder.resolve().name)
    atomic_write(page, PAGE.format(title=title, style=STYLE, body=body))
    return page


# ---------------------------------------------------------------- sections


def header(run: Run) -> str:
    """Say which run this is, and its headline numbers: the first metric of each split."""
    results = run.results
    name = results.recipe if results else run.folder.resolve().name
    if results is None:
        return f"<header><h1>{escape(name)}</h1><p>Not tested yet.</p></header>"
    facts = {
        "Command": f"<code>{escape(results.command)}</code>",
        "Seed": escape(results.seed),
        "Commit": f"<code>{escape(results.commit or 'not in a repository')}</code>",
        "Device": escape(results.device),
        "Versions": escape(", ".join(f"{k} {v}" for k, v in results.versions.items())),
    }
    cards = "".join(
        f'<li><span class="label">{escape(split)}</span>'
        f'<span class="number">{_number(numbers[0])}</span>'
        f'<span class="label">{escape(numbers[0].metric)}</span></li>'
        for split, numbers in results.results.items()
        if numbers
    )
    pairs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    shown = f'<ul class="cards">{cards}</ul>' if cards else "<p>No number was computed.</p>"
    return f'<header><h1>{escape(name)}</h1>{shown}<dl class="facts">{pairs}</dl></header>'


def learning_curves(run: Run) -> str:
    """Draw every number of metrics.jsonl over the steps; a figure has ``*/loss``, say."""
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in run.metrics for key in row):
        if key not in ("step", "epoch", "seconds"):
            groups.setdefault(key.rpartition("/")[2], []).append(key)
    figures = []
    # What one looks for first stands first: losses, validation, then how the run went.
    order = sorted(groups, key=lambda n: (n != "loss", all("/" not in key for key in groups[n])))
    for name in order:
        keys = groups[name]
        lines = {
            key.rpartition("/")[0] or key: [
                (float(row.get("step", i)), float(row[key]))
                for i, row in enumerate(run.metrics)
                if isinstance(row.get(key), (int, float))
            ]
            for key in keys
        }
        # A flat zero (no step was skipped, say) says nothing.
        lines = {key: points for key, points in lines.items() if any(y != 0 for _, y in points)}
        if lines:
            only = "" if len(lines) > 1 or name in lines else f"{next(iter(lines))} "
            figure = line_plot(lines, "step", f"{only}{name}")
            title = escape((only + name).replace("_", " "))
            figures.append(f"<div><h3>{title}</h3>{figure}</div>")
    return f'<h2>Learning curves</h2><div class="grid">{"".join(figures)}</div>' if figures else ""


def results_table(run: Run) -> str:
    """Write every number: a row for each metric, a column for each split, or the other way."""
    results = {k: v for k, v in (run.results.results if run.results else {}).items() if v}
    if not results:
        return ""
    metrics = list(dict.fromkeys(r.metric for numbers in results.values() for r in numbers))

    def cell(split: str, metric: str) -> str:
        return " ".join(_counted(r) for r in results[split] if r.metric == metric)

    if len(results) > len(metrics):  # several searches of several splits: too wide for a page
        head: tuple[str, ...] = ("split", *metrics)
        rows = [(escape(s), *(cell(s, metric) for metric in metrics)) for s in results]
    else:
        head = ("metric", *results)
        rows = [(escape(metric), *(cell(s, metric) for s in results)) for metric in metrics]
    return "<h2>Results</h2>" + table(head, rows, range(1, len(head)))


def attention(run: Run) -> str:
    """Show where labels looked in fixed validation utterances: first, middle and last epoch."""
    from speechkit.metrics.alignment import diagnose
    from speechkit.monitor import TAG, read_attention
    from speechkit.page import figure_svg
    from speechkit.plots import attention_figure

    files = plot_files(run.folder, TAG)
    if not files:
        return ""
    middle = (files[0].epoch + files[-1].epoch) / 2
    central = min(files, key=lambda file: abs(file.epoch - middle))
    chosen = [read_attention(f.path) for f in sorted({files[0], central, files[-1]})]
    parts = []
    for name in dict.fromkeys(item.id for epoch in chosen for item in epoch):
        maps = [item for epoch in chosen for item in epoch if item.id == name]
        told = "; ".join(item.label for item in maps)
        label = f"Attention of {name} over {maps[0].seconds:.2f} s: {told}"
        figure = figure_svg(attention_figure(maps), label, wide=True)
        if len(figure) > run.media_bytes:
            parts.append('<p class="label">The page is full: not all are shown.</p>')
            break
        run.media_bytes -= len(figure)
        parts.append(f"<article><h3>{escape(name)}</h3>{figure}</article>")
    last = max(run.metrics, key=lambda row: row.get("step", 0), default={})
    values = {k[6:]: v for k, v in last.items() if k.startswith("valid/")}
    found = "".join(
        f"<p><strong>At the last epoch {escape(what)}.</strong> {escape(advice)}</p>"
        for kind, what, advice in diagnose(values)
        if "attention" in kind
    )
    legend = (
        '<p class="legend">Each row is a label of the reference, the decoder being told the labels '
        "before it; bright is the sound that it looked at. An attention that works is a line from "
        "the upper left to the lower right.</p>"
    )
    return f"<h2>Attention</h2>{legend}{found}{''.join(parts)}"


def worst_utterances(run: Run) -> str:
    """Show the utterances with most errors: alignment, spectrogram and sound."""
    parts = []
    splits = run.splits()
    for split, rows in splits:
        if not any(row.keys() & {"hypothesis", "error"} for row in rows):
            continue  # nothing is right or wrong about a line of a language model's test
        if any(row.get("condition") for row in rows):
            continue  # what speech is compared with
        graded = sorted(((errors(row), row) for row in rows), key=lambda pair: -pair[0])
        wrong = [row for grade, row in graded if grade > 0][:WORST]
        share = max(1, run.players // max(1, len(splits)))  # the last split has its players too
        shown = "".join(utterance(run, row, media=i < share) for i, row in enumerate(wrong))
        note = f"{len(wrong)} of {len(rows)} utterances, those with most errors first."
        parts.append(f"<h3>{escape(split)}</h3><p>{note if wrong else 'No errors.'}</p>{shown}")
    if not parts:
        return ""
    legend = (
        '<p class="legend"><span class="sub"><del>reference</del> <ins>recognised</ins></span> '
        'substituted &ensp; <span class="ins"><ins>recognised</ins></span> inserted &ensp; '
        '<span class="del"><del>reference</del></span> deleted</p>'
    )
    return f"<h2>Worst utterances</h2>{legend}{''.join(parts)}"


def hyperparameters(run: Run) -> str:
    """Put hparams.yaml behind a fold."""
    if not run.hparams:
        return ""
    text = run.hparams[:MAX_TEXT] + ("\n..." if len(run.hparams) > MAX_TEXT else "")
    return (
        "<h2>Hyperparameters</h2><details><summary>hparams.yaml</summary>"
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )


SECTIONS: tuple[Section, ...] = (
    header, results_table, learning_curves, attention, separation, codec, speaker, diarization,
    classification, tts, vocoder, worst_utterances, hyperparameters,
)  # fmt: skip


# ---------------------------------------------------------------- an utterance


def errors(row: Mapping[str, Any]) -> float:
    """Give how bad a row is: its word errors in a row of texts, else its ``error``, else 0."""
    from speechkit.metrics.wer import word_errors

    texts = row.get("reference"), row.get("hypothesis")
    if all(isinstance(text, str) for text in texts):
        return float(word_errors([str(texts[0])], [str(texts[1])]).errors)
    error = row.get("error", 0.0)
    return float(error) if isinstance(error, (int, float)) else 0.0


def utterance(run: Run, row: Mapping[str, Any], *, media: bool = True) -> str:
    """Show one row: texts aligned, and with ``media`` its picture and player if there is sound."""
    name = escape(row.get("id", "?"))
    texts = row.get("reference"), row.get("hypothesis")
    shown = alignment(*map(str, texts)) if all(isinstance(t, str) for t in texts) else ""
    facts = [f"{row['duration']:.2f} s"] if isinstance(row.get("duration"), (int, float)) else []
    facts += [f"speaker {escape(row['speaker'])}"] if row.get("speaker") else []
    heading = f'<h4>{name} <span class="label">{" · ".join(facts)}</span></h4>'
    sound = player(run, row) if media else ""
    return f"<article>{heading}{shown}{sound}</article>"


def alignment(reference: str, hypothesis: str) -> str:
    """Write two texts word by word, errors marked by colour and by stroke."""
    from speechkit.metrics.wer import align

    kinds = {"substitute": "sub", "insert": "ins", "delete": "del"}
    words = []
    for pair in align(reference, hypothesis):
        if pair.op == "equal":
            words.append(escape(pair.reference))
            continue
        said = f"<del>{escape(pair.reference)}</del>" if pair.reference is not None else ""
        heard = f"<ins>{escape(pair.hypothesis)}</ins>" if pair.hypothesis is not None else ""
        inner = " ".join(filter(None, (said, heard)))
        words.append(f'<span class="{kinds[pair.op]}">{inner}</span>')
    return f'<p class="aligned">{" ".join(words)}</p>'


def player(run: Run, row: Mapping[str, Any]) -> str:
    """Give a row's spectrogram and audio player; nothing without sound or allowance."""
    from speechkit.data.audio import audio_info, read_audio

    path = row.get("audio") or row.get("estimate")
    if not path or run.players <= 0 or run.media_bytes <= 0:
        return ""
    start = float(row.get("start") or 0.0)
    try:
        file = run.folder / str(path)
        info = audio_info(file)
        duration = float(row.get("duration") or info.num_samples / info.sample_rate - start)
        samples, rate = read_audio(file, start=start, duration=min(duration, MAX_SECONDS))
    except DataError as error:  # moved since: the page says so and shows the rest
        return f'<p class="label">No sound: {escape(error)}</p>'
    name = row.get("id", "the utterance")
    shown = spectrogram(samples, rate, f"of {name}")
    shown += audio_player(samples, rate, f"Recording of {name}")
    if not run.take(1, len(shown)):
        run.media_bytes = 0  # full: the next ones need not be tried
        return ""
    cut = f'<p class="label">The first {MAX_SECONDS:.0f} s.</p>' if duration > MAX_SECONDS else ""
    return shown + cut


def _counted(result: Result) -> str:
    return f'{_number(result)} <span class="label">of {result.count:,}</span>'


def _number(result: Result) -> str:
    digits = 0 if float(result.value).is_integer() and result.unit != "%" else 2
    unit = f' <span class="unit">{escape(result.unit)}</span>' if result.unit else ""
    return f"{result.value:,.{digits}f}{unit}"
