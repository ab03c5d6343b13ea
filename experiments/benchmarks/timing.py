"""What the benchmarks share: paired timings, a table, and a JSON file that says where and how they were taken."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "torchmetrics", "open_clip_torch", "lightning", "adeval")
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, LARGEST = -3, -1, 2**31 - 1  # of glibc's malloc.h


def set_threads(threads: int) -> None:
    """Give every competitor the same number of threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def keep_memory() -> None:
    """Have this process keep what it has freed, where the C library is glibc.

    A virtual machine may give unused memory back to its host, and fetching it anew takes 2 ms a MB: more than most of
    what is timed here does with it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


def paired_medians(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run all ways in turn, A B A B, and return each one's median time in seconds.

    In turn, since a shared machine is not the same from one minute to the next: what slows one round slows all of it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same keys as a Markdown table."""
    header = list(rows[0])
    print(f"\n{title}\n\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for row in rows:
        print(f"| {' | '.join(_shown(row[key]) for key in header)} |", flush=True)


def write_results(name: str, tables: Mapping[str, Sequence[Mapping[str, Any]]], **settings: Any) -> None:
    """Write the tables to results/<name>.json, with machine, date, command, settings and versions."""
    content = {
        "command": " ".join(sys.orig_argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "settings": settings,
        "versions": {"python": platform.python_version(), **_versions()},
        "tables": tables,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
    print(f"\nwritten to {path}")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, and how busy they were in the last minute (1.0 is one core)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
