"""BenchmarkMetrics: categories apart, their mean, and what is absent."""

import copy

import pytest
import torch
from torch import nn

from src.metrics import METRIC_NAMES, BenchmarkMetrics, ImageMetrics, PixelMetrics, merge_states, write_state

CATEGORIES = ["screw", "bottle", "type.a", "keys"]  # the last two are names that nn.ModuleDict refuses
THRESHOLDS = {"image_F1Max_threshold", "pixel_F1Max_threshold"}


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
        "cls_score": torch.rand(n, generator=generator) + 0.2 * strength * label,
        "map_max": torch.rand(n, generator=generator) * 9 - 20,
        "label": label,
        "anomaly_map": noise + strength[:, None, None] * mask,
        "mask": mask,
    }


def evaluate(*batches: dict[str, object]) -> dict[str, dict]:
    metrics = BenchmarkMetrics(CATEGORIES)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def rows_of(batch: dict[str, object], rows: list[int]) -> dict[str, object]:
    return {k: [v[i] for i in rows] if isinstance(v, list) else v[rows] for k, v in batch.items()}


def test_each_category_is_evaluated_alone_and_in_the_given_order():
    batch = draw()
    result = evaluate(batch)
    assert list(result["categories"]) == ["screw", "bottle", "type.a"]  # "keys" never got an image
    for name, values in result["categories"].items():
        one = rows_of(batch, [i for i, other in enumerate(batch["category"]) if other == name])
        image, pixel = ImageMetrics(), PixelMetrics()
        image.update(one["cls_score"], one["map_max"], one["label"])
        pixel.update(one["anomaly_map"], one["mask"])
        assert values == {**image.compute(), **pixel.compute(), "vanished_masks": 0}
        assert values.keys() == {*METRIC_NAMES, *THRESHOLDS, "vanished_masks"}


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
    assert result["categories"]["bottle"].keys() == {*names, "image_F1Max_threshold"}


def test_with_neither_there_is_nothing_but_the_categories():
    batch = draw()
    del batch["mask"], batch["label"]
    assert evaluate(batch) == {"mean": {}, "categories": {"screw": {}, "bottle": {}, "type.a": {}}}
    assert BenchmarkMetrics(CATEGORIES).compute() == {"mean": {}, "categories": {}}


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
        metrics = BenchmarkMetrics(CATEGORIES)
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
    metrics = BenchmarkMetrics(CATEGORIES)
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
            self.val_metrics, self.test_metrics = BenchmarkMetrics(CATEGORIES), BenchmarkMetrics(CATEGORIES)

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
    batch, metrics = draw(), BenchmarkMetrics(CATEGORIES)
    with pytest.raises(ValueError, match=r"`category` to be among \['screw', .*\], but got \['nut'\]"):
        metrics.update(**{**batch, "category": ["nut"] * 24})
    with pytest.raises(ValueError, match="`label` to have length 24, but got 23"):
        metrics.update(**{**batch, "label": batch["label"][1:]})
    with pytest.raises(ValueError, match="`anomaly_map` to be given with `mask`"):
        metrics.update(**{**batch, "anomaly_map": None})
    with pytest.raises(ValueError, match="`cls_score` to be finite"):
        metrics.update(**{**batch, "cls_score": batch["cls_score"] / 0})
    with pytest.raises(ValueError, match="`categories` to name each once"):
        BenchmarkMetrics(["screw", "screw"])


def test_a_category_is_computed_and_forgotten_with_its_last_image():
    batch = draw()
    expected = evaluate(batch)
    metrics = BenchmarkMetrics(CATEGORIES, num_images={"screw": 8, "bottle": 8, "type.a": 9, "keys": 3})
    for i, name in enumerate(["screw", "bottle", "type.a"]):
        rows = [row for row, other in enumerate(batch["category"]) if other == name]
        metrics.update(**rows_of(batch, rows[:5]))
        assert metrics.pixel_metrics[i].normal_scores
        metrics.update(**rows_of(batch, rows[5:]))
        assert bool(metrics.pixel_metrics[i].normal_scores) == (name == "type.a")  # one of its images is still to come
    assert metrics.compute() == metrics.compute() == expected
    with pytest.raises(ValueError, match=r"`category` to have images left to come, but got \['bottle', 'screw'\]"):
        metrics.update(**batch)
    metrics.reset()
    assert metrics.compute() == {"mean": {}, "categories": {}}
    metrics.update(**batch)
    assert metrics.compute() == expected
