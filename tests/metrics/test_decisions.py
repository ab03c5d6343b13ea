"""Escapes and false alarms at given thresholds, against counting in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from src.metrics import BenchmarkMetrics
from src.run.metric_state import merge_states, write_state

ROWS = [  # category, single score, label; 0.5 is at the threshold of cup, and so normal
    ("cup", 0.5, 0),
    ("cup", 0.6, 0),
    ("cup", 0.1, 0),
    ("cup", 0.5, 1),
    ("cup", 0.9, 1),
    ("lid", 0.9, 1),
    ("lid", 0.2, 1),
    ("lid", 0.1, 1),
    ("nut", 0.4, 0),
]
THRESHOLDS = {"cup": 0.5, "lid": 0.2, "nut": 0.3}


def measured(rows: list[tuple[str, float, int]], thresholds: dict[str, float] | None = THRESHOLDS) -> BenchmarkMetrics:
    metrics = BenchmarkMetrics(list(THRESHOLDS), ["a"], "min_max_sum", thresholds=thresholds)
    names, scores, labels = zip(*rows, strict=True)
    single = torch.tensor(scores, dtype=torch.float64)
    metrics.update(names, {"a": -single}, single, torch.tensor(labels))
    return metrics


def test_counts_the_wrong_decisions_of_the_single_score_also_with_one_class() -> None:
    result = measured(ROWS).compute()
    for name in THRESHOLDS:
        for key, label in (("escapes", 1), ("false_alarms", 0)):
            own = [(score > THRESHOLDS[name]) for category, score, truth in ROWS if category == name and truth == label]
            wrong = [decided != bool(label) for decided in own]
            expected = sum(wrong) / len(wrong) if wrong else None
            assert result["categories"][name].get(key) == expected
    assert result["mean"]["escapes"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["mean"]["false_alarms"] == pytest.approx((1 / 3 + 1) / 2)


def test_are_absent_without_thresholds_and_a_category_without_one_is_refused() -> None:
    assert not {"escapes", "false_alarms"} & measured(ROWS, None).compute()["categories"]["cup"].keys()
    with pytest.raises(ValueError, match="thresholds"):
        measured(ROWS, {"cup": 0.5})


def test_merged_parts_give_the_whole_and_other_thresholds_are_refused(tmp_path: Path) -> None:
    parts = [tmp_path / "first", tmp_path / "second"]
    for path, rows in zip(parts, (ROWS[::2], ROWS[1::2]), strict=True):
        write_state(measured(rows), path)
    assert merge_states(parts).compute() == measured(ROWS).compute()
    write_state(measured(ROWS, {**THRESHOLDS, "cup": 0.4}), tmp_path / "other")
    with pytest.raises(UserError, match="thresholds"):
        merge_states([parts[0], tmp_path / "other"])
