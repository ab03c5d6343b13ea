"""One table of a sweep's trials: `python -m experiments.collect <sweep folder>`.

Trials that differ in their seeds alone are one setting; its mean and sample standard deviation follow them. The best
setting is marked, never the best seed. The table is printed, and written to the sweep's folder as trials.csv, with all
digits, and trials.md, in percent. Metrics of the user's own stand as they are; no setting is marked as the best in one,
since a lower value may be better.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from datamodules.errors import UserError
from src.cli import exit_code_of
from src.files import write_csv, write_text
from src.metric_names import DECISION_NAMES, METRIC_NAMES
from src.run.results import read_metrics, read_provenance
from src.sweeps.checks import read_sweep
from src.sweeps.trial import Trial, read_trials

SEEDS = ("seed", "reference_seed")
OBJECTIVE = "objective"
PROTOCOL = "protocol"
_IN_PERCENT = (OBJECTIVE, *METRIC_NAMES, *DECISION_NAMES)


@dataclass
class Row:
    """A trial, or the mean or the deviation of some.

    Attributes:
        label: the trial's number, or `mean of 3`, or `std`.
        settings: by which trials differ.
        values: the objective and the metrics, in [0, 1] but for the user's own; what there is not is absent.
        note: why there are no values.
        best_in: the values in which this setting is the best of several.

    Example:
        >>> Row("mean of 3", {"optimizer.lr": "0.1"}, {"pixel_AP": 0.5}).note
        ''
    """

    label: str
    settings: dict[str, str]
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""
    best_in: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the table of a sweep's folder; returns the exit code.

    Args:
        arguments: the folder; None for those of the command line.
    """
    given = sys.argv[1:] if arguments is None else arguments

    def print_table() -> None:
        if len(given) != 1:
            raise UserError("expected one folder: python -m experiments.collect <sweep folder>")
        print(collect(Path(given[0])), end="")

    return exit_code_of(print_table)


def collect(folder: Path) -> str:
    """Write the table to the sweep's folder, and return it as Markdown.

    Raises:
        UserError: there is no sweep in the folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from src.files import write_json
        >>> with TemporaryDirectory() as folder:
        ...     for number, lr, objective in ((0, 0.1, 0.4), (1, 0.2, 0.6)):
        ...         trial = Trial(number, [f"optimizer.lr={lr}"], "finished", objective)
        ...         write_json(Path(folder, str(number), "trial.json"), trial._asdict())
        ...     for line in collect(Path(folder)).splitlines()[-4:]:
        ...         print(line)
        | trial | optimizer.lr | objective | note |
        | --- | --- | ---: | --- |
        | 0 | 0.1 | 40.00 |  |
        | 1 | 0.2 | **60.00** |  |
    """
    trials = list(read_trials(folder))
    if not trials:
        raise UserError(f"expected the folder of a sweep, with trials 0, 1, ..., but found none in {folder}")
    settings = [_settings(trial.overrides) for trial in trials]
    common = {key: value for key, value in settings[0].items() if all(own.get(key) == value for own in settings)}
    rows = [
        Row(str(trial.number), {k: v for k, v in own.items() if k not in common}, *_results(folder, trial))
        for trial, own in zip(trials, settings, strict=True)
    ]
    protocols = _add_protocols(folder, rows)
    rows = with_summaries(rows)
    mark = _mark(folder, rows)
    text = "\n".join([*_heading(trials, common), *protocols, *mark, *_markdown(rows), ""])
    write_csv(folder / "trials.csv", _table(rows))
    write_text(folder / "trials.md", text)
    return text


def _add_protocols(folder: Path, rows: Sequence[Row]) -> list[str]:
    """What was trained and tested: a line for all, or, where trials differ in it, one of their settings."""
    lines = {}
    for row in rows:
        provenance = read_provenance(folder / row.label)
        if provenance:
            lines[row.label] = provenance["protocol"]["line"]
    distinct = set(lines.values())
    if len(distinct) > 1:
        for row in rows:
            row.settings[PROTOCOL] = lines.get(row.label, "")
    return [distinct.pop(), ""] if len(distinct) == 1 else []


def with_summaries(trials: Sequence[Row]) -> list[Row]:
    """The trials, setting by setting, each with its mean and deviation if it has several; the best marked.

    Example:
        >>> trials = [Row("0", {"seed": "1"}, {"pixel_AP": 0.25}), Row("1", {"seed": "2"}, {"pixel_AP": 0.75})]
        >>> [row.label for row in with_summaries(trials)], with_summaries(trials)[2].values
        (['0', '1', 'mean of 2', 'std'], {'pixel_AP': 0.5})
    """
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in trials:
        setting = tuple(sorted((key, value) for key, value in row.settings.items() if key not in SEEDS))
        groups.setdefault(setting, []).append(row)
    rows: list[Row] = []
    results: list[Row] = []  # one a setting
    for setting, group in groups.items():
        finished = [row for row in group if not row.note]
        rows += group
        if len(finished) > 1:
            names = [name for name in finished[0].values if all(name in row.values for row in finished)]
            for label, function in ((f"mean of {len(finished)}", mean), ("std", stdev)):
                rows.append(Row(label, dict(setting), {n: function(r.values[n] for r in finished) for n in names}))
            results.append(rows[-2])
        else:
            results += finished
    if len(results) > 1 and len({_tested(row) for row in results}) == 1:
        _mark_best(results)
    return rows


def _tested(row: Row) -> str:
    """What the metrics are of: those of two benchmarks can't be compared."""
    return row.settings.get(PROTOCOL, "").partition(" -> ")[2]


def _mark_best(results: Sequence[Row]) -> None:
    """By the objective if there is one: it alone may choose. Without one, in each metric."""
    names = _names(results)
    for name in [OBJECTIVE] if OBJECTIVE in names else [name for name in names if name in METRIC_NAMES]:
        best = max((row for row in results if name in row.values), key=lambda row: row.values[name])
        best.best_in.append(name)


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by key; the last of a key holds. Where a sweep writes is none of its settings."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key != "paths.output_dir"}


def _results(folder: Path, trial: Trial) -> tuple[dict[str, float], str]:
    """A trial's values, and a note if it has not finished."""
    if trial.status == "failed":
        return {}, f"failed: {trial.error}"
    if trial.status != "finished":
        return {}, "unfinished"
    values = {} if trial.objective is None else {OBJECTIVE: trial.objective}
    run = folder / str(trial.number)
    metrics = read_metrics(run, read_provenance(run))
    return values | (metrics["mean"] if metrics else {}), ""


def _heading(trials: Sequence[Trial], common: dict[str, str]) -> list[str]:
    """What was run."""
    states = [trial.status for trial in trials]
    unfinished = [f"{states.count(state)} {state}" for state in ("failed", "running") if state in states]
    lines = [f"{len(trials)} trials{''.join(f', {part}' for part in unfinished)}, in percent. All have:", ""]
    return [*lines, "```", *(f"{key}={value}" for key, value in common.items()), "```", ""]


def _mark(folder: Path, rows: Sequence[Row]) -> list[str]:
    """What bold means, if anything is."""
    best_in = {name for row in rows for name in row.best_in}
    if OBJECTIVE in best_in:
        sweep = read_sweep(folder)
        objective = (sweep and sweep["objective"]) or "the selected epoch's score on held-out categories"
        return [f"Bold is the best by the objective: {objective} of the training data.", ""]
    if best_in:
        return ["Bold is the best in a metric of the benchmark itself: it describes, and must select nothing.", ""]
    return []


def _table(rows: Sequence[Row]) -> Iterator[list[object]]:
    """A header, and the rows with all digits."""
    keys, names = _keys(rows), _names(rows)
    yield ["trial", *keys, *names, "best_in", "note"]
    for row in rows:
        settings, values = [row.settings.get(key, "") for key in keys], [row.values.get(name, "") for name in names]
        yield [row.label, *settings, *values, " ".join(row.best_in), row.note]


def _markdown(rows: Sequence[Row]) -> list[str]:
    keys, names = _keys(rows), _names(rows)
    table = [["trial", *keys, *names, "note"], ["---", *("---" for _ in keys), *("---:" for _ in names), "---"]]
    for row in rows:
        table.append(
            [row.label, *(_short(row.settings.get(k, "")) for k in keys), *(_percent(row, n) for n in names), row.note]
        )
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table]


def _short(setting: str) -> str:
    """Four digits of a drawn number; anything else as it is."""
    try:
        return f"{float(setting):.4g}" if len(setting) > 8 else setting
    except ValueError:
        return setting


def _percent(row: Row, name: str) -> str:
    if name not in row.values:
        return ""
    value = f"{100 * row.values[name]:.2f}" if name in _IN_PERCENT else f"{row.values[name]:.4g}"
    return f"**{value}**" if name in row.best_in else value


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.settings))


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))
