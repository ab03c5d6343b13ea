"""Run a recorded experiment again and compare: `python -m src.reproduce <output_dir>`.

The exit code is 0 if all metrics are equal within the tolerance of the device. If not, what differs is listed: the
metrics, and what they may depend on, which is data, weights, code, packages and the device.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from datamodules.errors import UserError
from src.cli import exit_code_of
from src.config import Config
from src.files import damaged, write_text
from src.overrides import CONF
from src.run.results import PROVENANCE_FILE, Provenance, read_finished, read_metrics

CACHE = "cache"
# On one CPU two runs are equal to the last digit; another CPU, or number of threads, adds in another order.
CPU_TOLERANCE = 1e-6
# Chosen, not measured: kernels of a GPU may add in another order from run to run.
GPU_TOLERANCE = 1e-2


class Recorded(NamedTuple):
    """What a finished run has left: its provenance, and its figures by dotted name."""

    provenance: Provenance
    figures: dict[str, float]


def main() -> None:
    """Console script and `python -m src.reproduce`."""

    def reproduce_given() -> int:
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise UserError("expected one folder: python -m src.reproduce <output_dir>")
        return reproduce(Path(sys.argv[1]))

    sys.exit(exit_code_of(reproduce_given))


def reproduce(folder: Path) -> int:
    """Run the recorded run again, in a new folder beside its folder, and compare the figures.

    Returns:
        The exit code: 0 if the figures are equal, 1 if they are not.

    Raises:
        UserError: the folder holds no finished run with metrics, its files are damaged, or the run fails this time.
    """
    before = read_record(folder)
    target = _new_folder(folder)
    command = _command(before.provenance, target)
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    code = run(command)
    shutil.rmtree(target / CACHE, ignore_errors=True)
    if code != 0:
        raise UserError(f"{folder} could not be run again; what the run has said stands above")
    after = read_record(target)
    tolerance = tolerance_of(before.provenance, after.provenance)
    different = list(compare(before.figures, after.figures, tolerance))
    causes = list(explain(before.provenance, after.provenance))
    print("\n".join([*different, *(f"differs: {cause}" for cause in causes)]))
    if different:
        print(f"not reproduced: {len(different)} of {len(before.figures)} figures differ by more than {tolerance:g}")
        if not causes:
            print("nothing that is recorded differs")
        return 1
    exact = before.figures == after.figures
    print(f"reproduced: {len(before.figures)} figures are equal {'exactly' if exact else f'within {tolerance:g}'}")
    return 0


def read_record(folder: Path) -> Recorded:
    """Read what a finished run has left.

    Raises:
        UserError: there is no run, it has not finished, its files are damaged, or it has left no figures.
    """
    provenance = read_finished(folder)
    unknown = sorted(provenance["config"].keys() - Config.__dataclass_fields__.keys())
    if unknown:
        raise damaged(folder / PROVENANCE_FILE, f"its configuration has keys that no run has: {', '.join(unknown)}")
    metrics = read_metrics(folder, provenance)
    trained = provenance.get("trained_weights")
    figures = dict(_numbers(metrics or {}))
    if trained and trained["score"] is not None:
        figures[f"held-out {trained['selected_by']}"] = trained["score"]
    if not figures:
        raise UserError(f"the run in {folder} has left no metrics to compare ({provenance['command']})")
    return Recorded(provenance, figures)


def compare(before: Mapping[str, float], after: Mapping[str, float], tolerance: float) -> Iterator[str]:
    """A line for each figure that differs by more than the tolerance, or that only one run has.

    Example:
        >>> list(compare({"mean.image_AUROC": 0.9}, {"mean.image_AUROC": 0.8}, tolerance=0.01))
        ['mean.image_AUROC: 0.900000 -> 0.800000 (-0.1)']
    """
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            yield f"{name}: only in the {'first' if name in before else 'second'} run"
        elif not abs(after[name] - before[name]) <= tolerance:
            yield f"{name}: {before[name]:.6f} -> {after[name]:.6f} ({after[name] - before[name]:+.2g})"


def explain(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A line for each difference on which figures may depend: data, references, weights, code, packages, device.

    Example:
        >>> before = {"data": {}, "code": {"commit": "1a", "dirty": False}, "packages": {"torch": "2.4"}, "device": {}}
        >>> list(explain(before, before | {"packages": {"torch": "2.5"}}))
        ['package: torch 2.4 -> 2.5']
    """
    for role in before["data"].keys() | after["data"].keys():
        one, other = (run["data"].get(role) or {} for run in (before, after))
        if one.get("sha256") != other.get("sha256"):
            yield f"data: {role} data, {_extent(one)} -> {_extent(other)}; files, or their sizes, are others"
    if len({(run.get("references") or {}).get("sha256") for run in (before, after)}) > 1:
        yield "references: the reference images are others"
    for name in ("backbone", "checkpoint"):
        one, other = (run.get(name) or {} for run in (before, after))
        if one.get("sha256") != other.get("sha256"):
            yield f"weights: {name} {one.get('file')}, sha256 {one.get('sha256')} -> {other.get('sha256')}"
    yield from _explain_code(before["code"], after["code"])
    for kind, title in (("packages", "package"), ("device", "device")):
        for name in sorted(before[kind].keys() | after[kind].keys()):
            one, other = before[kind].get(name), after[kind].get(name)
            if one != other:
                yield f"{title}: {name} {one} -> {other}"


def tolerance_of(*runs: Mapping[str, Any]) -> float:
    """How far figures may lie apart: CPU against CPU, or anything with a GPU.

    Example:
        >>> cpu, gpu = {"device": {"type": "cpu"}}, {"device": {"type": "cuda"}}
        >>> tolerance_of(cpu, cpu), tolerance_of(cpu, gpu)
        (1e-06, 0.01)
    """
    return CPU_TOLERANCE if all(run["device"]["type"] == "cpu" for run in runs) else GPU_TOLERANCE


def run(command: Sequence[str]) -> int:
    """Run a command; its output is the user's. Returns its exit code.

    Example:
        >>> run([sys.executable, "-c", "raise SystemExit(3)"])
        3
    """
    return subprocess.run(command, check=False).returncode


def _command(provenance: Provenance, target: Path) -> list[str]:
    """Write the recorded configuration below the new folder, and make the command that runs it.

    It is as complete as it was composed, so nothing but Hydra's own settings is added. Loggers don't decide figures,
    and might write to where the first run wrote; nor does it take what earlier runs have kept, which no change of code
    would show in.

    The record may be a stranger's. It is values: nothing in it is Hydra's, and no `${...}` is looked up again.
    """
    config = provenance["config"]
    trainer = {key: value for key, value in config["trainer"].items() if key != "profiler"}
    paths = config["paths"] | {"output_dir": str(target), "cache_dir": str(target / CACHE)}
    recorded = _plain({**config, "trainer": trainer, "paths": paths})
    header = {"defaults": [{"hydra": "default"}, "_self_"], "hydra": {"searchpath": [f"file://{CONF}"]}}
    content = OmegaConf.create(header | recorded | {"logger": OmegaConf.load(CONF / "logger" / "csv.yaml")})
    kind = provenance["kind"]
    write_text(target / "config" / f"{kind}.yaml", OmegaConf.to_yaml(content))
    return [sys.executable, "-m", f"src.{kind}", "--config-path", str(target / "config"), "--config-name", kind]


def _plain(value: Any) -> Any:
    """A value in which OmegaConf sees no interpolation: `${` is escaped, and a backslash before it, too."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _new_folder(folder: Path) -> Path:
    """Make the next folder beside the run: `<name>-reproduced-1`, ..."""
    path, number = folder.resolve(), 1
    while True:
        new = path.with_name(f"{path.name}-reproduced-{number}")
        try:
            new.mkdir()
        except FileExistsError:  # of an earlier time, or of another process at this moment
            number += 1
        else:
            return new


def _explain_code(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before["commit"] != after["commit"]:
        yield f"code: commit {before['commit']} -> {after['commit']}"
    for label, code in (("first", before), ("second", after)):
        if code["dirty"]:
            yield f"code: the {label} run had changes that are in no commit"


def _numbers(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested dictionaries, by dotted name."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", float(value)


def _extent(data: Mapping[str, Any]) -> str:
    return f"{data['files']} files of {data['bytes']} bytes" if data else "none"


if __name__ == "__main__":
    main()
