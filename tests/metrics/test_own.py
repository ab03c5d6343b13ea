"""Metrics of the user's own in `BenchmarkMetrics`; `test_exchange` has them under several processes."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor
from torchmetrics import Accuracy, MeanSquaredError, Metric, MetricCollection

from src.metrics import METRIC_NAMES, BenchmarkMetrics, OwnMetric
from tests.metrics.sharing import CATEGORIES, OWN, SCENARIOS, TERMS, Spread, draw, fill

SHOWN = SCENARIOS["in turn"]._replace(own=OWN)


class Seen(Metric):
    """Keeps what it gets, and gives a value that was set."""

    value: object = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [])
        self.add_state("target", [])

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> object:
        return self.value


class Failing(Seen):
    def update(self, preds: Tensor, target: Tensor) -> None:
        raise KeyError("class")


def seen(level: str) -> tuple[OwnMetric, list[Seen]]:
    """A metric, and where its instances are found."""
    made: list[Seen] = []

    def make() -> Seen:
        made.append(Seen())
        return made[-1]

    return OwnMetric(level, make), made  # type: ignore[arg-type]


def first(images: int) -> dict[str, object]:
    data = draw()
    terms = {name: values[:images] for name, values in data.pop("terms").items()}
    return {key: value[:images] for key, value in data.items()} | {"terms": terms}


def giving(value: object) -> dict[str, dict[str, float]]:
    metrics = fill(
        SHOWN._replace(own={"own": OwnMetric("image", type("Giving", (Seen,), {"value": value}))}), [0, 1, 2]
    )
    return metrics.compute()  # type: ignore[return-value]


def test_values_join_the_categories_and_the_mean_and_change_nothing_else():
    plain, result = fill(SCENARIOS["in turn"], list(range(17))).compute(), fill(SHOWN, list(range(17))).compute()
    data, categories = draw(), result["categories"]
    assert list(result["mean"]) == [*METRIC_NAMES, *OWN]
    for name, rows in (("screw", slice(0, 7)), ("bottle", slice(7, 13))):
        maps, masks = data["anomaly_map"][rows], data["mask"][rows]
        assert categories[name]["hits"] == float((maps[masks == 1] >= 0.5).float().mean())
        difference = maps[masks == 1].median() - maps[masks == 0].median()
        assert categories[name]["spread"] == float(3 * difference)
    for name in OWN:
        assert result["mean"][name] == (categories["screw"].pop(name) + categories["bottle"].pop(name)) / 2
        del result["mean"][name]
    assert result == plain  # "good" has one class, and so none of them


def test_an_image_metric_gets_the_fused_scores_of_the_category_at_once():
    own, made = seen("image")
    metrics = fill(SHOWN._replace(own={"own": own}), list(range(17)))
    metrics.compute()
    [preds], [target] = made[-1].preds, made[-1].target  # bottles are the last that have both classes
    assert (preds.dtype, preds.shape, target.dtype) == (torch.float64, (6,), torch.int64)
    assert torch.equal(preds, metrics.metrics_of("bottle")[0].fused()[0])
    assert target.tolist() == draw()["label"][7:13].tolist()


@pytest.mark.parametrize("native", [False, True])
def test_a_pixel_metric_gets_maps_and_masks_batch_by_batch(native):
    own, made = seen("pixel")
    data, metrics = first(13), BenchmarkMetrics(["screw", "bottle"], TERMS, "single", own={"own": own})
    for key in ("anomaly_map", "mask"):
        data[key] = [one[: 10 + i % 3] for i, one in enumerate(data[key])] if native else data[key]
    metrics.update(**data)
    screws = next(one for one in made if one.preds)
    assert {preds.ndim for preds in screws.preds} == {3}
    assert [len(preds) for preds in screws.preds] == [1] * 7 if native else [7]
    for given, expected in ((screws.preds, data["anomaly_map"]), (screws.target, data["mask"])):
        flat = torch.cat([one.flatten() for one in expected[:7]])
        assert torch.equal(torch.cat([one.flatten() for one in given]), flat)
    assert {target.dtype for target in screws.target} == {torch.int64}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, torch.tensor(torch.nan)])
def test_a_value_that_is_no_number_is_absent(value):
    result = giving(value)
    assert "own" not in result["categories"]["screw"]
    assert "own" not in result["mean"]


@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25).double()])
def test_a_number_is_a_number(value):
    assert giving(value)["mean"]["own"] == 0.25


def test_more_than_a_number_is_refused():
    with pytest.raises(ValueError, match=r"metric own to give one number, but got shape \(2,\)"):
        giving(torch.zeros(2))


def test_what_goes_wrong_in_a_metric_is_told_with_its_name():
    with pytest.raises(ValueError, match="Expected metric bad to work, but got KeyError: 'class'"):
        fill(SHOWN._replace(own={"bad": OwnMetric("pixel", Failing)}), [0, 1])


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        *(
            (name, OWN["gap"], f"other names than the result, but got {name}")
            for name in ("image_AUROC", "pixel_AUPRO_error", "pixel_F1Max_threshold", "vanished_masks")
        ),
        ("own", OwnMetric("images", Spread), "`level` of metric own to be image or pixel, but got images"),
        ("own", OwnMetric("image", dict), r"metric own to be a torchmetrics\.Metric, but got dict"),
        ("own", OwnMetric("image", partial(MetricCollection, [Spread()])), "but got MetricCollection"),
    ],
)
def test_what_can_not_be_is_refused_at_the_start(name, own, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkMetrics(CATEGORIES, TERMS, "min_max_sum", own={name: own})


def test_torchmetrics_own_classes_work():
    own = {
        "accuracy": OwnMetric("image", partial(Accuracy, task="binary", threshold=0.9)),
        "MSE": OwnMetric("pixel", MeanSquaredError),
    }
    metrics = fill(SHOWN._replace(own=own, fusion="half_sum_min_max"), list(range(17)))
    result, data = metrics.compute()["categories"]["screw"], draw()
    fused, label = metrics.metrics_of("screw")[0].fused()
    assert result["accuracy"] == pytest.approx(float(((fused > 0.9) == label).double().mean()), abs=1e-6)
    assert result["MSE"] == pytest.approx(float((data["anomaly_map"][:7] - data["mask"][:7]).square().mean()), rel=1e-5)


def test_finish_and_reset_let_go_of_what_a_metric_holds():
    made: list[weakref.ref[Spread]] = []

    def make() -> Spread:
        metric = Spread(scale=3.0)
        made.append(weakref.ref(metric))
        return metric

    def holding() -> int:
        gc.collect()
        return sum(bool(metric.preds) for metric in (reference() for reference in made) if metric is not None)

    scenario = SHOWN._replace(own={"spread": OwnMetric("pixel", make)})
    expected, metrics = fill(SHOWN, list(range(17))).compute(), fill(scenario, list(range(17)))
    assert holding() == 3
    metrics.finish("screw")
    assert holding() == 2
    result = metrics.compute()
    assert result == metrics.compute()
    assert result["mean"]["spread"] == expected["mean"]["spread"]
    metrics.reset()
    assert holding() == 0
    metrics.update(**{**first(7), "category": ["bottle"] * 7})
    assert metrics.compute()["categories"]["bottle"]["spread"] == expected["categories"]["screw"]["spread"]
