"""BenchmarkMetrics: categories apart, their mean, and what is absent."""

import copy

import pytest
import torch
from torch import nn

from src.metrics import METRIC_NAMES, BenchmarkMetrics, ImageMetrics, PixelMetrics
from src.run.metric_state import merge_states, write_state

CATEGORIES = ["screw", "bottle", "type.a", "keys"]  # the last two are names that nn.ModuleDict refuses
TERMS = ["cls_score", "map_max"]
THRESHOLDS = {"image_F1Max_threshold", "pixel_F1Max_threshold"}
SINGLE = {"single_AUROC", "single_AP", "single_F1Max", "single_F1Max_threshold"}


def draw(seed: int = 0, n: int = 24) -> dict[str, object]:
    """A batch of three mixed categories; each differs in how well it is solved."""
    generator = torch.Generator().manual_seed(seed)
    category = [CATEGORIES[i % 3] for i in range(n)]
    label = torch.tensor([(i // 3) % 2 for i in range(n)])
    mask = (torch.rand(n, 12, 12, generator=generator) < 0.1).long() * label[:, None, None]
    strength = torch.tensor([i % 3 for i in range(n)])
    noise = torch.randn(n, 12, 12, generator=generator)
    return {
        "category": category,
        "terms": {
            "cls_score": torch.rand(n, generator=generator) + 0.2 * strength * label,
            "map_max": torch.rand(n, generator=generator) * 9 - 20,
        },
        "single_score": torch.rand(n, generator=generator),
        "label": label,
        "anomaly_map": noise + strength[:, None, None] * mask,
        "mask": mask,
    }


def new(**options: object) -> BenchmarkMetrics:
    return BenchmarkMetrics(CATEGORIES, **({"terms": TERMS, "fusion": "min_max_sum"} | options))


def evaluate(*batches: dict[str, object]) -> dict[str, dict]:
    metrics = new()
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def rows_of(batch: dict[str, object], rows: list[int]) -> dict[str, object]:
    return {key: rows_of_value(value, rows) for key, value in batch.items()}


def rows_of_value(value: object, rows: list[int]) -> object:
    if isinstance(value, dict):
        return {name: one[rows] for name, one in value.items()}
    return [value[i] for i in rows] if isinstance(value, list) else value[rows]


@pytest.mark.parametrize("memory_gb", [None, 0.0], ids=["exact", "histogram"])
def test_scores_stay_on_the_cpu_when_the_metrics_are_moved(memory_gb: float | None):
    metrics = new(memory_gb=memory_gb)
    metrics.update(**draw(0))
    metrics.to("meta")  # a device on which no value would be left
    metrics.update(**draw(1))
    expected = new(memory_gb=memory_gb)
    for seed in (0, 1):
        expected.update(**draw(seed))
    assert metrics.compute() == expected.compute()


def test_each_category_is_evaluated_alone_and_in_the_given_order():
    batch = draw()
    result = evaluate(batch)
    assert list(result["categories"]) == ["screw", "bottle", "type.a"]  # "keys" never got an image
    for name, values in result["categories"].items():
        one = rows_of(batch, [i for i, other in enumerate(batch["category"]) if other == name])
        image, pixel = ImageMetrics(TERMS, "min_max_sum"), PixelMetrics()
        image.update(one["terms"], one["single_score"], one["label"])
        pixel.update(one["anomaly_map"], one["mask"])
        assert values == {**image.compute(), **pixel.compute(), "vanished_masks": 0}
        assert values.keys() == {*METRIC_NAMES, *THRESHOLDS, *SINGLE, "vanished_masks"}


def test_the_mean_is_over_categories():
    result = evaluate(draw())
    assert list(result["mean"]) == list(METRIC_NAMES)
    for name in METRIC_NAMES:
        values = [category[name] for category in result["categories"].values()]
        assert len(set(values)) > 1
        assert result["mean"][name] == pytest.approx(sum(values) / 3, abs=1e-15)


def test_a_category_with_one_class_is_absent_and_does_not_pull_the_mean_down():
    batch = draw()
    is_screw = torch.tensor([name == "screw" for name in batch["category"]])
    batch["label"] = batch["label"].masked_fill(is_screw, 0)
    batch["mask"] = batch["mask"].masked_fill(is_screw[:, None, None], 0)
    result = evaluate(batch)
    assert result["categories"]["screw"] == {"vanished_masks": 0}
    for name in METRIC_NAMES:
        others = [result["categories"][category][name] for category in ("bottle", "type.a")]
        assert result["mean"][name] == pytest.approx(sum(others) / 2, abs=1e-15)


def test_without_labels_there_are_no_image_metrics():
    batch = draw()
    del batch["label"]
    result = evaluate(batch)
    names = {"pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO"}
    assert result["mean"].keys() == names
    assert result["categories"]["bottle"].keys() == {*names, "pixel_F1Max_threshold"}


def test_without_masks_there_are_no_pixel_metrics():
    batch = draw()
    del batch["mask"]
    result = evaluate(batch)
    names = {"image_AUROC", "image_AP", "image_F1Max"}
    assert result["mean"].keys() == names
    assert result["categories"]["bottle"].keys() == {*names, *SINGLE, "image_F1Max_threshold"}


def test_with_neither_there_is_nothing_but_the_categories():
    batch = draw()
    del batch["mask"], batch["label"]
    assert evaluate(batch) == {"mean": {}, "categories": {"screw": {}, "bottle": {}, "type.a": {}}}
    assert new().compute() == {"mean": {}, "categories": {}}


def test_vanished_masks_are_counted_per_category():
    batch = draw()
    assert (batch["label"][3:6] == 1).all()
    batch["mask"][3] = 0  # screw
    batch["mask"][[5, 11]] = 0  # type.a
    counts = {name: values["vanished_masks"] for name, values in evaluate(batch)["categories"].items()}
    assert counts == {"screw": 1, "bottle": 0, "type.a": 2}
    assert all(type(count) is int for count in counts.values())


def test_masks_that_were_empty_before_are_counted_apart(tmp_path):
    batch = draw()
    assert (batch["label"][3:6] == 1).all()
    batch["mask"][[3, 5, 11]] = 0
    batch["mask_is_empty"] = [i in (3, 11) for i in range(24)]
    result = evaluate(batch)
    for key, expected in (("vanished_masks", [0, 0, 1]), ("empty_masks", [1, 0, 1])):
        assert [values[key] for values in result["categories"].values()] == expected
    parts = [tmp_path / "first", tmp_path / "second"]
    for path, rows in zip(parts, (range(10), range(10, 24)), strict=True):
        metrics = new()
        metrics.update(**rows_of(batch, list(rows)))
        write_state(metrics, path)
    assert merge_states(parts).compute() == result


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_batches_give_what_one_update_gives(batch_size):
    batch = draw(1)
    batch["mask"][3] = 0
    parts = [rows_of(batch, list(range(24))[i : i + batch_size]) for i in range(0, 24, batch_size)]
    assert evaluate(*parts) == evaluate(batch)


def test_native_sizes_as_lists():
    batch = draw(2)
    batch["anomaly_map"] = [m[: 6 + i % 6] for i, m in enumerate(batch["anomaly_map"])]
    batch["mask"] = [m[: 6 + i % 6] for i, m in enumerate(batch["mask"])]
    result = evaluate(batch)
    pixel = PixelMetrics()
    pixel.update(batch["anomaly_map"][1::3], batch["mask"][1::3])
    assert result["categories"]["bottle"].items() >= pixel.compute().items()


def test_compute_twice_and_reset():
    batch, other = draw(1), draw(2)
    metrics = new()
    metrics.update(**batch)
    assert metrics.compute() == metrics.compute() == evaluate(batch)
    metrics.update(**other)
    assert metrics.compute() == evaluate(batch, other)
    metrics.reset()
    assert metrics.compute() == {"mean": {}, "categories": {}}
    metrics.update(**other)
    assert metrics.compute() == evaluate(other)


def test_two_instances_inside_a_module_do_not_mix():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.val_metrics, self.test_metrics = new(), new()

    holder = Holder()
    holder.val_metrics.update(**draw(1))
    holder.half().to("cpu")
    holder.test_metrics.update(**draw(2))
    assert holder.val_metrics.compute() == evaluate(draw(1))
    assert copy.deepcopy(holder).test_metrics.compute() == evaluate(draw(2))
    assert holder.state_dict() == {}  # nothing of it in a checkpoint


@pytest.mark.filterwarnings("error")
def test_no_warning_where_something_is_absent():
    batch = draw()
    del batch["label"]
    evaluate(batch)


def test_bad_input_is_refused():
    batch, metrics = draw(), new()
    with pytest.raises(ValueError, match=r"`category` to be among \['screw', .*\], but got \['nut'\]"):
        metrics.update(**{**batch, "category": ["nut"] * 24})
    with pytest.raises(ValueError, match="`label` to have length 24, but got 23"):
        metrics.update(**{**batch, "label": batch["label"][1:]})
    with pytest.raises(ValueError, match="`anomaly_map` to be given with `mask`"):
        metrics.update(**{**batch, "anomaly_map": None})
    with pytest.raises(ValueError, match="`cls_score` to be finite"):
        metrics.update(**{**batch, "terms": batch["terms"] | {"cls_score": torch.full((24,), torch.nan)}})
    with pytest.raises(ValueError, match="`categories` to name each once"):
        BenchmarkMetrics(["screw", "screw"], TERMS, "min_max_sum")
    for terms in ({"cls_score": torch.rand(24)}, {**batch["terms"], "other": torch.rand(24)}):
        with pytest.raises(ValueError, match=r"`terms` to have \['cls_score', 'map_max'\], but got"):
            metrics.update(**{**batch, "terms": terms})
    with pytest.raises(ValueError, match="`fusion` to be one of min_max_sum, half_sum_min_max, single, but got sum"):
        new(fusion="sum")
    with pytest.raises(ValueError, match="`terms` to have two terms for fusion half_sum_min_max"):
        new(fusion="half_sum_min_max", terms=["cls_score"])


def test_a_finished_category_keeps_its_result_and_nothing_else():
    batch = draw()
    expected = evaluate(batch)
    metrics = new()
    metrics.update(**batch)
    metrics.finish("screw")
    metrics.finish("bottle")
    assert [bool(metric.normal_scores) for metric in metrics.pixel_metrics] == [False, False, True, False]
    assert [bool(metric.scores) for metric in metrics.image_metrics] == [False, False, True, False]
    assert metrics.compute() == metrics.compute() == expected
    assert metrics.finished == {name: expected["categories"][name] for name in ("screw", "bottle")}
    assert metrics.num_images == {"screw": 8, "bottle": 8, "type.a": 8, "keys": 0}
    with pytest.raises(ValueError, match=r"`category` to have images left to come, but got \['bottle', 'screw'\]"):
        metrics.update(**batch)
    metrics.reset()
    assert metrics.compute() == {"mean": {}, "categories": {}}
    metrics.update(**batch)
    assert metrics.compute() == expected


def test_nothing_is_forgotten_unasked():
    batch, metrics = draw(), new()
    metrics.update(**batch)
    held = [len(metric.normal_scores) for metric in metrics.pixel_metrics]
    metrics.compute()
    metrics.update(**batch)
    assert [len(metric.normal_scores) for metric in metrics.pixel_metrics] >= held
    assert metrics.compute() == evaluate(batch, batch)
    assert metrics.finished == {}


def test_the_fusion_chooses_the_image_score():
    batch, results = draw(), {}
    for rule in ("min_max_sum", "half_sum_min_max", "single"):
        metrics = new(fusion=rule)
        metrics.update(**batch)
        results[rule] = metrics.compute()["categories"]["screw"]
    assert len({values["image_AP"] for values in results.values()}) == 3
    only_single = new(fusion="single", terms=[])
    only_single.update(**{**batch, "terms": {}})
    assert only_single.compute()["categories"]["screw"] == results["single"]
