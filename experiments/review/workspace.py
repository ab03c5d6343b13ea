"""Make a saved workspace and a report in W&B, in which the runs of a project are reviewed.

`python -m experiments.review.workspace entity=TEAM project=clip-ad run=outputs/...`, with the extra `review`. Each call
makes a new workspace and a new report; nothing that is there is changed.

  entity      the team or user in W&B that the project belongs to
  project     the project
  run         the folder of a finished test; its categories and metrics get panels
  categories  instead of `run`, or fewer: [bottle,screw]
  metrics     fewer: [pixel_F1Max,pixel_AUPRO]; default: those of `run`, or all
  name        of both; default: Review of anomaly detection
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.errors import UserError, reason_of
from src.cli import exit_code_of
from src.metric_names import METRIC_NAMES
from src.overrides import did_you_mean
from src.run.results import METRICS_FILE, read_finished, read_metrics

SWEEP = Path(__file__).with_name("wandb_sweep.yaml")
OPTIONS = ("entity", "project", "run", "categories", "metrics", "name")


class Review(NamedTuple):
    """What is to be seen of a project.

    Attributes:
        entity: the team or user in W&B.
        project: of the entity.
        name: of the workspace and the report.
        categories: that panels are made for.
        metrics: as in metrics.json, such as `pixel_F1Max`.
        objective: what a search maximises, as W&B calls it.
        searched: setting -> whether a search draws it on a logarithmic scale.
    """

    entity: str
    project: str
    name: str
    categories: Sequence[str]
    metrics: Sequence[str]
    objective: str
    searched: Mapping[str, bool]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program, with the command line's arguments unless others are given."""
    sys.exit(exit_code_of(lambda: _main(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: Sequence[str]) -> None:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    review = read_review(arguments)
    try:
        from experiments.review.panels import build_report, build_workspace
    except ModuleNotFoundError as missing:
        if missing.name != "wandb_workspaces":
            raise
        raise UserError("W&B's workspaces need the extra review: pip install -e '.[review]'") from missing
    from src.run.trackers import why_offline  # Lightning, for options that are known to be right

    if reason := why_offline():
        raise UserError(f"a workspace can only be made while W&B is online: {reason}")
    try:
        build_workspace(review).save()  # each says itself where it lies
        build_report(review).save()
    except (ValueError, OSError) as refused:  # no such project, or no network any more; others have W&B's own type
        raise UserError(f"W&B: {reason_of(refused)}") from refused


def read_review(arguments: Sequence[str]) -> Review:
    """Read the command line.

    Args:
        arguments: KEY=VALUE each, see `OPTIONS`.

    Raises:
        UserError: an unknown or missing option; a run that has not finished, or has no metrics.

    Example:
        >>> review = read_review(["entity=lab", "project=clip-ad", "categories=[bottle,screw]", "metrics=[pixel_AP]"])
        >>> review.categories, review.metrics, review.objective
        (['bottle', 'screw'], ['pixel_AP'], 'selected/pixel_AP')
    """
    given = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in OPTIONS:
            raise UserError(f"unknown option '{key}'{did_you_mean(key, OPTIONS)}")
        if not value:
            raise UserError(f"expected {key}=VALUE, but got '{argument}'")
        given[key] = value
    for key in ("entity", "project"):
        if key not in given:
            raise UserError(f"expected {key}=NAME, which stands in the project's address: wandb.ai/<entity>/<project>")
    categories: list[str] = []
    metrics = list(METRIC_NAMES)
    if "run" in given:
        categories, metrics = _read_run(Path(given["run"]))
    elif "categories" not in given:
        raise UserError("expected run=FOLDER of a finished test, or categories=[bottle,screw]")
    search = read_search()
    return Review(
        given["entity"],
        given["project"],
        given.get("name", "Review of anomaly detection"),
        _listed(given["categories"]) if "categories" in given else categories,
        _listed(given["metrics"]) if "metrics" in given else metrics,
        search["metric"]["name"],
        {key: "log" in range_.get("distribution", "") for key, range_ in search["parameters"].items()},
    )


def read_search() -> dict[str, Any]:
    """Read the search that W&B's sweeps run, `wandb_sweep.yaml`."""
    return dict(yaml.safe_load(SWEEP.read_text(encoding="utf-8")))


def _read_run(folder: Path) -> tuple[list[str], list[str]]:
    """The categories and metrics of a test."""
    metrics = read_metrics(folder, read_finished(folder))
    if metrics is None:
        raise UserError(f"expected a test in {folder}, but there is no {METRICS_FILE}; a prediction has none")
    return list(metrics["categories"]), list(metrics["mean"])


def _listed(value: str) -> list[str]:
    """Read `[bottle,screw]`."""
    return [name.strip() for name in value.strip("[]").split(",")]


if __name__ == "__main__":
    main()
