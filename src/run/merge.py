"""Join an evaluation or a prediction that was run in parts (`test_data.shard=i/n`) into the results of one run.

`python -m experiments.merge FOLDER... [--out FOLDER]`, folders of all n parts in any order. The default for `--out` is
`merged` beside the first.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import UserError
from datamodules.options import parse_shard
from src.callbacks.map_writer import OVERLAYS
from src.callbacks.overlay_writer import write_overlays
from src.callbacks.report import MOST_IMAGES, REPORT_FILE, write_report
from src.callbacks.wandb_review import log_review
from src.cli import exit_code_of
from src.environment import before_running
from src.files import damaged, write_json
from src.processes import warned
from src.report.cases import Cases
from src.report.description import size_of
from src.report.table import print_table
from src.run.lock import locked
from src.run.metric_state import merge_states, read_header
from src.run.predictions import Prediction, read_predictions, write_predictions
from src.run.protocol import cut_by
from src.run.provenance import describe_command, now
from src.run.region_files import COCO_FILE, read_outlines, regions_journal, write_coco
from src.run.results import (
    CASES_FILE,
    CURVES_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    REGIONS_FILE,
    STATE_FILE,
    WITHOUT_TEST,
    Provenance,
    check_written,
    hashes_of,
    read_finished,
    write_curves,
)
from src.run.trackers import is_wandb, wandb_arguments

# What has to be the same of all parts, and how a difference is told.
_SAME = {
    "kind": "the command",
    "data": "the data",
    "backbone": "the backbone's weights",
    "checkpoint": "the checkpoint",
    "references": "the reference images",
    "code": "the code",
    "packages": "packages",
    "device": "device or precision",
    "config": "options",
}
_ELSEWHERE = ("paths", "logger", "callbacks", "trainer", "references")


class Part(NamedTuple):
    """One part of an evaluation: the `number`-th of `total`, counted from 1.

    Example:
        >>> Part(Path("outputs/part2"), 2, 4, {"kind": "predict"}).is_test
        False
    """

    folder: Path
    number: int
    total: int
    provenance: Provenance

    @property
    def is_test(self) -> bool:
        """Whether it was tested; predictions have no metrics."""
        return bool(self.provenance["kind"] not in WITHOUT_TEST)


def read_part(folder: Path) -> Part:
    """Read what a part says about itself.

    Raises:
        UserError: there is no finished part of an evaluation.
    """
    provenance = read_finished(folder)
    shard = provenance["config"]["test_data"].get("shard")
    if shard is None:
        raise UserError(f"{folder} holds a whole run, no part of one (test_data.shard)")
    cut = [setting for setting in provenance["protocol"]["cut_short_by"] if not setting.startswith("test_data.shard=")]
    if cut:
        raise UserError(f"{folder} holds part {shard}, which was cut short by {', '.join(cut)}; run it without")
    try:
        number, count = parse_shard(shard)
    except UserError as error:
        raise damaged(folder / PROVENANCE_FILE, str(error)) from error
    return Part(folder, number, count, provenance)


def check_parts(parts: Sequence[Part]) -> None:
    """Check that the parts are those of one evaluation, each once.

    Raises:
        UserError: parts of different evaluations; parts that are missing or there twice.

    Example:
        >>> check_parts([Part(Path("outputs/part1"), 1, 2, {"kind": "eval"})])
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: expected parts 1 to 2, but no part 2 was given; run what is missing first
    """
    first = parts[0]
    for part in parts[1:]:
        differs = [title for key, title in _SAME.items() if _comparable(part, key) != _comparable(first, key)]
        if part.total != first.total:
            differs = [f"the number of parts ({first.total} and {part.total})"]
        if differs:
            raise UserError(
                f"{first.folder} and {part.folder} are parts of different runs: they differ in {', '.join(differs)}"
            )
    found = Counter(part.number for part in parts)
    absent = (str(number) for number in range(1, first.total + 1) if number not in found)
    if missing := list(islice(absent, 20)):
        raise UserError(
            f"expected parts 1 to {first.total}, but no part {', '.join(missing)} was given; run what is missing first"
        )
    twice = [str(number) for number, times in found.items() if times > 1]
    if twice:
        raise UserError(f"expected each part once, but part {', '.join(twice)} was given more than once")


def _comparable(part: Part, key: str) -> Any:
    value: Any = part.provenance.get(key)
    if key == "config":
        test_data = {
            name: one for name, one in value["test_data"].items() if name not in ("shard", "root", "num_workers")
        }
        return {name: one for name, one in value.items() if name not in _ELSEWHERE} | {"test_data": test_data}
    if key == "data":
        return value["test"]["sha256"]
    if key in ("backbone", "checkpoint", "references"):
        return (value or {}).get("sha256")
    if key == "kind":
        return part.is_test
    if key == "device":
        return value["type"], value["precision"]
    return value


def merge(folders: Sequence[Path], out: Path) -> None:
    """Write the results of the whole evaluation to a new folder.

    Raises:
        UserError: see `read_part` and `check_parts`; what a part has left is not what it has written, or not of its
            images; or `out` holds something already.
    """
    parts = sorted((read_part(folder) for folder in folders), key=lambda part: part.number)
    check_parts(parts)
    _refuse_a_run(out)
    rows = [row for part in parts for row in _read_rows(part)]
    _check_images(rows, parts[0])
    metrics = merge_states([part.folder / STATE_FILE for part in parts]) if parts[0].is_test else None
    terms, rule = (metrics.terms, metrics.fusion) if metrics else _fusion_of(rows)
    if any(tuple(row.terms) != tuple(terms) for row in rows):
        raise UserError(f"expected {PREDICTIONS_FILE} of all parts to have the terms {', '.join(terms)}")
    result = metrics.compute() if metrics else None
    with locked(out):
        _refuse_a_run(out)
        write_predictions(out / PREDICTIONS_FILE, rows, terms, rule)
        if any(REGIONS_FILE in part.provenance.get("files", ()) for part in parts):
            with warned(REGIONS_FILE):
                _join_regions(parts, out)
        if metrics and result:
            write_json(out / METRICS_FILE, result)
            with warned(CURVES_FILE):
                write_curves(out, metrics.curves)
        write_json(out / PROVENANCE_FILE, _describe(parts) | {"files": hashes_of(out)})
        if result:
            print_table(result, f"{len(parts)} parts of one evaluation")
        _show(parts, out)
    print(f"results in {out}")


def _show(parts: Sequence[Part], out: Path) -> None:
    """Write the page and the overlays of the whole, if all parts have left what they are made of."""
    config: Mapping[str, Any] = parts[0].provenance["config"]
    report = (config.get("callbacks") or {}).get("report")

    def cases() -> Cases:
        return Cases([check_written(part.folder, part.provenance, CASES_FILE) for part in parts])

    if (out / REGIONS_FILE).exists():
        with warned(COCO_FILE), cases() as read:
            write_coco(out, _images_of(read))
    if not any(CASES_FILE in part.provenance.get("files", ()) for part in parts):
        return
    if report:
        with warned(REPORT_FILE), cases() as read:
            write_report(out, read, report.get("max_images", MOST_IMAGES))
    if config.get("save_overlays"):
        with warned(OVERLAYS), cases() as read:
            write_overlays(out, read, read_outlines(out))
    _review(config, out, cases)


def _join_regions(parts: Sequence[Part], out: Path) -> None:
    """Write the regions of all parts as those of one prediction."""
    of_parts = [regions_journal(check_written(part.folder, part.provenance, REGIONS_FILE).parent) for part in parts]
    regions_journal(out).finish(row for one in of_parts for row in one.rows())


def _images_of(cases: Cases) -> Iterator[tuple[str, str, int, int]]:
    """Path, category, width and height of each image that is still there."""
    for number, (category, image_path) in enumerate(cases.names()):
        size = size_of(cases.image_file(number), cases.is_upright(number))
        if size:
            yield image_path, category, *size


def _review(config: Mapping[str, Any], out: Path, cases: Callable[[], Cases]) -> None:
    """Make the whole one run in W&B, as it would be if it had not been run in parts."""
    nodes = [node for node in (config.get("logger") or {}).values() if node and is_wandb(node)]
    settings = (config.get("callbacks") or {}).get("wandb_review")
    provenance = read_finished(out)
    if not (nodes and settings and "identity" in provenance):
        return
    import wandb  # a second, which only those wait for who use it

    run_id = hashlib.sha256(f"{out.absolute()} {provenance['finished']}".encode()).hexdigest()[:16]
    given = {**nodes[0], **wandb_arguments(nodes[0], provenance["identity"], run_id, out)}
    names = ("project", "entity", "name", "id", "group", "job_type", "tags", "notes", "settings", "mode")
    with warned("review in W&B"), cases() as read:
        known: dict[str, Any] = {name: given.get(name) for name in names}
        run: Any
        with wandb.init(dir=str(out), **known) as run:
            run.config.update({"protocol": provenance["protocol"]["line"], "provenance": provenance, **config})
            allowed = settings.get("upload_images")
            shows_images = provenance["data"]["test"].get("published", False) if allowed is None else allowed
            logged: list[str] = []
            log_review(run, out, read, settings["images_per_category"] if shows_images else 0, logged)
            url = None if run.offline else run.url
            entry = {"id": run.id, "url": url, "uploaded": logged}
            write_json(out / PROVENANCE_FILE, dict(provenance) | {"wandb": entry})


def _refuse_a_run(out: Path) -> None:
    if (out / PROVENANCE_FILE).exists():
        raise UserError(f"{out} holds a run; choose another --out")


def _read_rows(part: Part) -> list[Prediction]:
    """A part's predictions, which are of the images that its state counts.

    Raises:
        UserError: a file is not what the part has written, or one is of other images than the other.
    """
    path = check_written(part.folder, part.provenance, PREDICTIONS_FILE)
    rows = read_predictions(path)
    if part.is_test:
        counts = read_header(check_written(part.folder, part.provenance, STATE_FILE))["counts"]
        found = [
            Counter(row.category for row in some) for some in (rows, [row for row in rows if row.label is not None])
        ]
        if found != [Counter({name: own[key] for name, own in counts.items()}) for key in ("images", "labels")]:
            raise damaged(path, f"it has other images or labels than {STATE_FILE} beside it")
    return rows


def _fusion_of(rows: Sequence[Prediction]) -> tuple[Sequence[str], str | None]:
    """The terms of predictions, and the rule: that of one image alone, or none where the image scores are empty."""
    is_single = all(row.image_score is not None for row in rows)
    return (list(rows[0].terms) if rows else []), ("single" if is_single else None)


def _check_images(rows: Sequence[Prediction], part: Part) -> None:
    """Refuse what is not the images of the data, each once.

    Raises:
        UserError: some are missing, or there twice.
    """
    categories = part.provenance["data"]["test"]["categories"]
    expected = sum(one["images"] for one in categories.values())
    if len(rows) != expected:
        raise UserError(
            f"expected the {expected} images of the data in {PREDICTIONS_FILE} of all parts, found {len(rows)}"
        )
    found = [(name, len(list(group))) for name, group in groupby(row.category for row in rows)]
    if found != [(name, one["images"]) for name, one in categories.items()]:
        raise UserError(f"expected {PREDICTIONS_FILE} of all parts to have the data's categories, in their order")
    twice = [name for name, times in Counter((row.category, row.image_path) for row in rows).items() if times > 1]
    if twice:
        raise UserError(
            f"expected each image once in {PREDICTIONS_FILE} of all parts, but {twice[0][1]} is there twice"
        )


def _describe(parts: Sequence[Part]) -> dict[str, Any]:
    """The provenance of the whole: that of its first part, but for being a part."""
    whole = parts[0].provenance
    config, protocol = whole["config"], whole["protocol"]
    line = protocol["line"].removesuffix(cut_by(protocol["cut_short_by"]))
    return dict(whole) | {
        "config": config | {"test_data": config["test_data"] | {"shard": None}},
        "protocol": protocol | {"line": line, "cut_short_by": []},
        "command": describe_command(),
        "finished": now(),
        "merged_from": [str(part.folder) for part in parts],
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or arguments.folders[0].parent / "merged"
    before_running()
    sys.exit(exit_code_of(lambda: merge(arguments.folders, out)))
