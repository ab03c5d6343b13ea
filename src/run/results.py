"""What a run leaves in its folder: the files' names, what stands in them, and how they are read again.

Nothing heavy is imported here. Types come from typing_extensions, since pydantic takes no others before Python 3.12.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from datamodules.errors import UserError
from src.files import SPARE, damaged, read_json, replacing, sha256_of
from src.metric_names import CurvePoints

PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
CURVES_FILE = "curves.json"
STATE_FILE = "metric_state.safetensors"
"""What a part of an evaluation leaves, instead of metrics."""
CASES_FILE = "cases.sqlite"
"""What a part leaves for the page of the whole, see `src.report.cases`."""

CALIBRATION_FILE = "calibration.json"
"""What `src.calibrate` leaves, see `src.calibration`."""

REGIONS_FILE = "regions.csv"
"""What the threshold of the maps marks, see `src.run.region_files`."""

WITHOUT_TEST = ("predict", "calibrate")
"""The kinds of runs that have no metrics."""

HASHED = (METRICS_FILE, PREDICTIONS_FILE, CURVES_FILE, STATE_FILE, CASES_FILE, CALIBRATION_FILE, REGIONS_FILE)
"""The files whose hashes a finished run records: they belong to it, and to each other."""


class DataUse(TypedDict):
    """Which images of a data set a run uses.

    `categories` and `images` are those trained on or tested, `held_out` the categories that only validate.
    `is_whole` says that nothing of the published data set is left out.
    """

    name: str
    title: str
    split: str
    categories: list[str]
    held_out: list[str]
    images: int
    is_whole: bool


class ProtocolRecord(TypedDict):
    """What was trained and tested; `line` says all of it."""

    line: str
    trained_on: DataUse | None
    tested_on: DataUse
    leaked_categories: list[str]
    cut_short_by: list[str]
    training_cut_short_by: list[str]
    shots: NotRequired[int | str]


class Code(TypedDict):
    """The commit, and whether the code was changed since; None outside a checkout."""

    commit: str | None
    dirty: bool | None


class Device(TypedDict):
    """Where the run computed."""

    type: str
    name: str
    precision: str
    processes: int
    threads: int
    platform: str


class Counts(TypedDict):
    """What there is of a category."""

    images: int
    normal: int
    anomalous: int
    bytes: int


class Data(TypedDict):
    """A data set's identity; `sha256` is of names and sizes, `published` says whether all categories are."""

    categories: dict[str, Counts]
    files: int
    bytes: int
    sha256: str
    missing_categories: list[str]
    published: NotRequired[bool]


class WeightsRecord(TypedDict):
    """A file of weights; random weights have none. A backbone's have the names that open_clip knows them by."""

    name: NotRequired[str]
    tag: NotRequired[str | None]
    file: str | None
    sha256: str | None


class Trained(TypedDict):
    """The trained parameters that the run has left, and how their epoch was selected."""

    file: str
    selected_by: str
    score: float | None
    epochs: int


class RecordedConfig(TypedDict):
    """A run's configuration, interpolations resolved; the nodes that are read again."""

    test_data: dict[str, Any]
    trainer: dict[str, Any]
    paths: dict[str, Any]


class Identity(TypedDict):
    """What a run is called where many runs are looked at together, as in W&B.

    Runs of one `experiment` have one `group`; the trials of a sweep have the sweep's. The `name` adds what was changed.
    """

    experiment: str
    name: str
    group: str
    job_type: str
    tags: list[str]


class Decided(TypedDict):
    """A category's thresholds. `map_threshold` and the promise `max_false_alarms` are those of a calibration."""

    score_threshold: float
    map_threshold: float | None
    max_false_alarms: float | None


class Provenance(TypedDict):
    """`provenance.json`. `finished` is None before the end; `files` are the hashes of `HASHED`, since the end."""

    started: str
    resumed: list[dict[str, Any]]
    finished: str | None
    config: RecordedConfig
    kind: Literal["train", "eval", "predict", "calibrate"]
    command: str
    identity: NotRequired[Identity]
    protocol: ProtocolRecord
    seed: int
    code: Code
    packages: dict[str, str]
    device: Device
    data: dict[str, Data]
    backbone: WeightsRecord
    checkpoint: WeightsRecord | None
    fusion: NotRequired[str]
    references: NotRequired[dict[str, Any] | None]
    wandb: NotRequired[dict[str, Any] | None]
    feature_cache: NotRequired[dict[str, Any]]
    trained_weights: NotRequired[Trained]
    unreadable: NotRequired[list[str]]
    calibration: NotRequired[dict[str, str] | None]
    decisions: NotRequired[dict[str, Decided]]
    merged_from: NotRequired[list[str]]
    files: NotRequired[dict[str, str]]


class Metrics(TypedDict):
    """`metrics.json`: what `BenchmarkMetrics` computes, by name; beside its own metrics those of the user's own."""

    mean: dict[str, float]
    categories: dict[str, dict[str, float]]


def read_provenance(folder: Path) -> Provenance | None:
    """Read what the run in a folder says about itself; None if there is no run.

    Raises:
        UserError: the file is damaged.

    Example:
        >>> read_provenance(Path("outputs/no_run")) is None
        True
    """
    try:
        return read_json(folder / PROVENANCE_FILE, Provenance)
    except FileNotFoundError:
        return None


def read_finished(folder: Path) -> Provenance:
    """Read what a finished run says about itself.

    Raises:
        UserError: there is no run, it has not finished, or the file is damaged.

    Example:
        >>> read_finished(Path("outputs/no_run"))
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: outputs/no_run holds no run; expected its provenance.json
    """
    provenance = read_provenance(folder)
    if provenance is None:
        raise UserError(f"{folder} holds no run; expected its {PROVENANCE_FILE}")
    if not provenance["finished"]:
        raise UserError(f"the run in {folder} has not finished; resume it by its own command: {provenance['command']}")
    return provenance


def read_metrics(folder: Path, provenance: Provenance | None) -> Metrics | None:
    """Read a run's metrics; None if it has left none.

    Raises:
        UserError: the file is damaged, or another than the run has written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from src.files import write_json
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, METRICS_FILE), {"mean": {"image_AUROC": 0.9}, "categories": {}})
        ...     print(read_metrics(Path(folder), provenance=None)["mean"])
        {'image_AUROC': 0.9}
    """
    if provenance and METRICS_FILE in provenance.get("files", ()):
        check_written(folder, provenance, METRICS_FILE)
    try:
        return read_json(folder / METRICS_FILE, Metrics)
    except FileNotFoundError:
        return None


def write_curves(folder: Path, curves: Mapping[str, Mapping[str, CurvePoints]]) -> None:
    """Write a test's curves, by category and level.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> points: CurvePoints = {"threshold": [0.5], "fpr": [0.0], "recall": [1.0], "precision": [1.0]}
        >>> with TemporaryDirectory() as folder:
        ...     write_curves(Path(folder), {"cup": {"image": points}})
        ...     print(read_curves(Path(folder)) == {"cup": {"image": points}})
        True
    """
    with replacing(folder / CURVES_FILE, spare=SPARE) as temporary:
        temporary.write_text(json.dumps(curves, allow_nan=False) + "\n", encoding="utf-8")


def read_curves(folder: Path) -> dict[str, dict[str, CurvePoints]] | None:
    """Read a test's curves, by category and level (`image`, `single`, `pixel`); None if it has left none.

    Raises:
        UserError: the file is damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     print(read_curves(Path(folder)))
        None
    """
    path = folder / CURVES_FILE
    try:
        curves = read_json(path, dict[str, dict[str, CurvePoints]])
    except FileNotFoundError:
        return None
    for name, levels in curves.items():
        for level, curve in levels.items():
            if len({len(values) for values in curve.values()}) != 1:  # type: ignore[arg-type]
                raise damaged(path, f"{name}.{level} has lists of different lengths")
    return curves


def hashes_of(folder: Path) -> dict[str, str]:
    """The hashes of a run's results, to record at its end.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, METRICS_FILE).touch()
        ...     print(list(hashes_of(Path(folder))))
        ['metrics.json']
    """
    return {name: sha256_of(folder / name) for name in HASHED if (folder / name).is_file()}


def check_written(folder: Path, provenance: Provenance, name: str) -> Path:
    """Check that a file is the one that a finished run has written, and return its path.

    Raises:
        UserError: it is missing, or another.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, METRICS_FILE).touch()
        ...     provenance = {"files": hashes_of(Path(folder))}
        ...     print(check_written(Path(folder), provenance, METRICS_FILE).name)
        metrics.json
    """
    path = folder / name
    recorded = provenance.get("files", {}).get(name)
    if recorded is None:
        raise UserError(f"{folder / PROVENANCE_FILE} has no hash of {name}; run it again")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise damaged(path, f"the run has written it, but it can't be read ({error.strerror})") from error
    if found != recorded:
        raise damaged(path, "it is not what the run has written")
    return path
