"""Evaluations that processes share, for `test_exchange`: the processes import this, so it imports little."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric, MinMaxMetric
from torchmetrics.classification import BinaryAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

from src.metrics import AUPRO, AUROC, BenchmarkMetrics, OwnMetric

CATEGORIES = ["screw", "bottle", "good", "nut"]  # "good" has normal images only, "nut" none at all
SIDE = 20
PIXELS = SIDE * SIDE
TERMS = ["cls_score", "map_max"]
Split = Callable[[int, int, int], bool]  # image, rank, number of processes -> whether the process has the image


class Scenario(NamedTuple):
    """Which process gets which image, in what batches, and what is different from the usual."""

    has: Split
    batch: int = 3
    memory_gb: float | None = None
    without: tuple[str, ...] = ()
    float64_rank: int | None = None
    fusion: str = "min_max_sum"
    own: Mapping[str, OwnMetric] | None = None


class Hits(Metric):
    """Of the anomalous pixels, how many score 0.5 or more: sums as states, and no argument for the base class."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.hits += ((preds >= 0.5) & (target == 1)).sum()
        self.total += target.sum()

    def compute(self) -> Tensor:
        return self.hits / self.total


class Spread(Metric):
    """The distance between the medians of the classes: lists as states, of shapes that differ."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        return self.scale * (preds[target == 1].median() - preds[target == 0].median())


class MeanAsState(Spread):
    """A mean over processes is not that over images."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("average", torch.tensor(0.0), dist_reduce_fx="mean")


NOT_SHARED = {
    "average": OwnMetric("pixel", MeanAsState),
    "smallest": OwnMetric("pixel", partial(MinMaxMetric, Spread())),
}
OWN = {
    "hits": OwnMetric("pixel", Hits),
    "spread": OwnMetric("pixel", partial(Spread, scale=3.0)),
    "gap": OwnMetric("image", Spread),
    "AP": OwnMetric("image", BinaryAveragePrecision),
}


def _in_turn(image: int, rank: int, processes: int) -> bool:
    return image % processes == rank


SCENARIOS = {
    "in turn": Scenario(_in_turn),
    "one by one": Scenario(_in_turn, batch=1),
    "in blocks": Scenario(lambda image, rank, processes: image * processes // 17 == rank),  # no rank has each category
    "all on the last": Scenario(lambda image, rank, processes: rank == processes - 1),
    "all but one on the first": Scenario(lambda image, rank, processes: rank == int(image == 3)),
    "without labels": Scenario(_in_turn, without=("label",)),
    "without masks": Scenario(_in_turn, without=("mask",)),
    "single score": Scenario(_in_turn, fusion="single"),
    "half sum": Scenario(_in_turn, fusion="half_sum_min_max"),
    "own metrics": Scenario(_in_turn, own=OWN),
    "own metrics in blocks": Scenario(lambda image, rank, processes: image * processes // 17 == rank, own=OWN),
    "own metrics, all on the last": Scenario(lambda image, rank, processes: rank == processes - 1, own=OWN),
    "one in float64": Scenario(_in_turn, float64_rank=1),
    "histogram": Scenario(_in_turn, memory_gb=0),
    "histogram on one rank": Scenario(lambda i, r, n: r == int(i == 0), memory_gb=12 * 4 * PIXELS / 1e9),
    "histogram of all only": Scenario(_in_turn, memory_gb=12 * 4 * PIXELS / 1e9),  # no rank has more than 4 images
    "histogram, all on the last": Scenario(lambda image, rank, processes: rank == processes - 1, memory_gb=0),
}


def draw() -> dict[str, Any]:
    """17 images: 7 screws, 6 bottles, 4 good ones; scores of few values, so that they tie."""
    generator = torch.Generator().manual_seed(0)
    category = ["screw"] * 7 + ["bottle"] * 6 + ["good"] * 4
    label = torch.tensor([int(name != "good" and i % 3 != 0) for i, name in enumerate(category)])
    is_anomalous = label.view(-1, 1, 1).to(torch.uint8)
    mask = (torch.rand(17, SIDE, SIDE, generator=generator) < 0.05) * is_anomalous
    mask[:, 3:9, 5:12] = is_anomalous
    mask[[4, 8]] = 0  # vanished
    noise = torch.randn(mask.shape, generator=generator)
    anomaly_map = ((noise + 0.8 * mask) * 50).round() / 50
    cls_score = torch.rand(17, generator=generator)
    return {
        "category": category,
        "terms": {"cls_score": cls_score, "map_max": anomaly_map.amax((1, 2))},
        "single_score": cls_score + anomaly_map.amax((1, 2)),
        "label": label,
        "anomaly_map": anomaly_map,
        "mask": mask,
        "mask_is_empty": [i == 8 for i in range(17)],
    }


def fill(scenario: Scenario, images: list[int], *, float64: bool = False) -> BenchmarkMetrics:
    """Metrics of some images."""
    data, metrics = draw(), BenchmarkMetrics(CATEGORIES, TERMS, scenario.fusion, scenario.memory_gb, scenario.own)
    for key in scenario.without:
        data[key] = None
    if float64:
        data["anomaly_map"] = data["anomaly_map"].double()
    for start in range(0, len(images), scenario.batch):
        rows = images[start : start + scenario.batch]
        metrics.update(**{key: _rows(value, rows) for key, value in data.items()})
    return metrics


def _rows(value: Any, rows: list[int]) -> Any:
    if isinstance(value, dict):
        return {name: one[rows] for name, one in value.items()}
    if isinstance(value, Tensor):
        return value[rows]
    return value if value is None else [value[row] for row in rows]


def run_process(rank: int, processes: int, folder: str) -> None:
    """Evaluate all scenarios as one of several processes, and write what each gives."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    results: dict[str, Any] = {}
    for name, scenario in SCENARIOS.items():
        images = [image for image in range(17) if scenario.has(image, rank, processes)]
        metrics = fill(scenario, images, float64=rank == scenario.float64_rank)
        results[name] = [metrics.compute(), metrics.compute()]
    results["single"] = single_metrics(range(rank, 17, processes))
    results["refused"] = [_error_of(lambda: fill(SCENARIOS["in turn"], [0]).finish("screw"))]
    for name, own in NOT_SHARED.items():
        scenario = SCENARIOS["in turn"]._replace(own={name: own})
        results["refused"].append(_error_of(lambda scenario=scenario: fill(scenario, [0])))
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def single_metrics(images: range) -> dict[str, float]:
    """The metric classes alone."""
    data, rows = draw(), list(images)
    region, curve = AUPRO(), AUROC()
    region.update(data["anomaly_map"][rows], data["mask"][rows])
    curve.update(data["single_score"][rows], data["label"][rows])
    return {"AUPRO": region.compute().item(), "AUROC": curve.compute().item()}
