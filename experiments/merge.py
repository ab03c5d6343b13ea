"""Join an evaluation or a prediction that was run in parts (`test_data.shard=i/n`) into the results of one run.

`python -m experiments.merge FOLDER... [--out FOLDER]`, folders of all n parts in any order. The default for `--out` is
`merged` beside the first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.checks import parse_shard
from datamodules.errors import UserError
from src.callbacks.predictions import read_predictions, single_image_score, write_predictions
from src.files import write_json
from src.metrics.functional.fusion import fuse_image_scores
from src.metrics.state_file import STATE_FILE, merge_states
from src.report.protocol import cut_by
from src.report.provenance import PROVENANCE_FILE, describe_command, now
from src.report.table import print_table

PREDICTIONS_FILE, METRICS_FILE = "predictions.csv", "metrics.json"
# What has to be the same of all parts, and how a difference is told.
_SAME = {
    "kind": "the command",
    "data": "the data",
    "backbone": "the backbone's weights",
    "checkpoint": "the checkpoint",
    "code": "the code",
    "packages": "packages",
    "device": "device or precision",
    "config": "options",
}
_ELSEWHERE = ("paths", "logger", "callbacks", "trainer")


class Part(NamedTuple):
    """One part of an evaluation: the `number`-th of `count`, counted from 1."""

    folder: Path
    number: int
    count: int
    provenance: dict[str, Any]

    @property
    def is_test(self) -> bool:
        """Whether it was tested; predictions have no metrics."""
        return bool(self.provenance["kind"] != "predict")


def read_part(folder: Path) -> Part:
    """Read what a part says about itself.

    Raises:
        UserError: there is no finished part of an evaluation.
    """
    try:
        provenance = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no run ({PROVENANCE_FILE} can't be read)") from error
    shard = provenance["config"]["test_data"].get("shard")
    if shard is None:
        raise UserError(f"{folder} holds a whole run, no part of one (test_data.shard)")
    if not provenance["finished"]:
        raise UserError(f"{folder} holds part {shard}, which is not finished; run it again with the same options")
    cut = [setting for setting in provenance["protocol"]["cut_short_by"] if not setting.startswith("test_data.shard=")]
    if cut:
        raise UserError(f"{folder} holds part {shard}, which was cut short by {', '.join(cut)}; run it without")
    number, count = parse_shard(shard)
    return Part(folder, number, count, provenance)


def check_parts(parts: Sequence[Part]) -> None:
    """Check that the parts are those of one evaluation, each once.

    Raises:
        UserError: parts of different evaluations; parts that are missing or there twice.
    """
    first = parts[0]
    for part in parts[1:]:
        differs = [title for key, title in _SAME.items() if _comparable(part, key) != _comparable(first, key)]
        if part.count != first.count:
            differs = [f"the number of parts ({first.count} and {part.count})"]
        if differs:
            raise UserError(
                f"{first.folder} and {part.folder} are parts of different runs: they differ in {', '.join(differs)}"
            )
    found = Counter(part.number for part in parts)
    missing = [str(number) for number in range(1, first.count + 1) if number not in found]
    if missing:
        raise UserError(
            f"expected parts 1 to {first.count}, but no part {', '.join(missing)} was given; run what is missing first"
        )
    twice = [str(number) for number, times in found.items() if times > 1]
    if twice:
        raise UserError(f"expected each part once, but part {', '.join(twice)} was given more than once")


def _comparable(part: Part, key: str) -> Any:
    value = part.provenance.get(key)
    if key == "config":
        test_data = {
            name: one for name, one in value["test_data"].items() if name not in ("shard", "root", "num_workers")
        }
        return {name: one for name, one in value.items() if name not in _ELSEWHERE} | {"test_data": test_data}
    if key == "data":
        return value["test"]["sha256"]
    if key in ("backbone", "checkpoint"):
        return (value or {}).get("sha256")
    if key == "kind":
        return part.is_test
    if key == "device":
        return value["type"], value["precision"]
    return value


def merge(folders: Sequence[Path], out: Path) -> None:
    """Write the results of the whole evaluation to a new folder.

    Raises:
        UserError: see `read_part` and `check_parts`; or `out` holds something already.
    """
    parts = sorted((read_part(folder) for folder in folders), key=lambda part: part.number)
    check_parts(parts)
    if (out / PROVENANCE_FILE).exists():
        raise UserError(f"{out} holds a run; choose another --out")
    result = merge_states([part.folder / STATE_FILE for part in parts]).compute() if parts[0].is_test else None
    rows = [row for part in parts for row in read_predictions(part.folder / PREDICTIONS_FILE)]
    _check_count(len(rows), parts[0])
    write_predictions(out / PREDICTIONS_FILE, rows, fuse_image_scores if result else single_image_score)
    if result:
        write_json(out / METRICS_FILE, result)
        print_table(result, f"{len(parts)} parts of one evaluation")
    write_json(out / PROVENANCE_FILE, _describe(parts))
    print(f"results in {out}")


def _check_count(images: int, part: Part) -> None:
    """Refuse what is not the images of the data, each once.

    Raises:
        UserError: some are missing, or there twice.
    """
    expected = sum(one["images"] for one in part.provenance["data"]["test"]["categories"].values())
    if images != expected:
        raise UserError(
            f"expected the {expected} images of the data in {PREDICTIONS_FILE} of all parts, found {images}"
        )


def _describe(parts: Sequence[Part]) -> dict[str, Any]:
    """The provenance of the whole: that of its first part, but for being a part."""
    whole = dict(parts[0].provenance)
    config, protocol = whole["config"], whole["protocol"]
    line = protocol["line"].removesuffix(cut_by(protocol["cut_short_by"]))
    return whole | {
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
    try:
        merge(arguments.folders, arguments.out or arguments.folders[0].parent / "merged")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
