"""Times of ways to do one thing, measured in turn, and what is left of them: a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from src.files import write_json
from src.report.provenance import describe_code, describe_command, describe_packages, now

RESULTS = Path(__file__).parent / "results"


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each way. They run in turn, A B A B, so that what else the machine does meets all of them.

    Args:
        ways: what to time, by name.
        rounds: how many times each is timed.
        warm_up: rounds before, which don't count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, run in ways.items():
            start = perf_counter()
            run()
            if number >= warm_up:
                seconds[name].append(perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def report(name: str, title: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Print rows as a table and write them to `results/<name>.json`, with machine, date, command and versions.

    Args:
        name: the benchmark.
        title: the table's headline.
        rows: one mapping a line, the first one's keys are the columns.
        settings: what else belongs to the numbers.
    """
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    origin = {"date": now(), "command": describe_command(), "machine": describe_machine(), "code": describe_code()}
    content = {"title": title, **origin, "packages": describe_packages(), "settings": settings, "rows": list(rows)}
    write_json(RESULTS / f"{name}.json", json.loads(json.dumps(content, default=str)))


def describe_machine() -> dict[str, Any]:
    """The processor, how many threads compute, and how busy the machine was otherwise."""
    information = Path("/proc/cpuinfo")
    models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
    }
