"""States of shards in files: merged, they give what one run gives."""

import random
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.errors import UserError
from src.metrics import BenchmarkMetrics
from src.run.metric_state import merge_states, write_state
from tests.metrics.sharing import CATEGORIES, OWN, PIXELS, SCENARIOS, TERMS, Scenario, fill

SHARES = [[0, 1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [], [11, 12, 13, 14], [15], [16]]


def write_shards(folder: Path, scenario: Scenario) -> list[Path]:
    """One file a share."""
    paths = [folder / f"{number}.safetensors" for number in range(len(SHARES))]
    for path, images in zip(paths, SHARES, strict=True):
        write_state(fill(scenario, images), path)
    return paths


@pytest.mark.parametrize(
    "name",
    ["in turn", "without labels", "without masks", "histogram", "histogram of all only", "single score", "half sum"],
)
@pytest.mark.filterwarnings("ignore:.*histogram")
def test_merged_shards_are_one_run_in_any_order(tmp_path, name):
    expected = fill(SCENARIOS[name], list(range(17))).compute()
    paths = write_shards(tmp_path, SCENARIOS[name])
    assert sorted(tmp_path.iterdir()) == paths  # no temporary files are left
    for seed in range(3):
        random.Random(seed).shuffle(paths)
        merged = merge_states(paths)
        assert merged.compute() == expected
        assert merged.num_images == {"screw": 7, "bottle": 6, "good": 4, "nut": 0}
        assert not merged.pixel_metrics[0].normal_scores  # nothing is held any more


def test_a_part_that_handed_over_takes_the_others_along(tmp_path):
    scenario = SCENARIOS["in turn"]._replace(memory_gb=12 * 4 * PIXELS / 1e9)
    write_state(fill(scenario, [0, 1, 2, 3, 4]), tmp_path / "many")
    write_state(fill(scenario, [5, 6]), tmp_path / "few")
    expected = fill(scenario, list(range(7))).compute()
    assert "pixel_AUPRO_error" in expected["categories"]["screw"]
    assert merge_states([tmp_path / "few", tmp_path / "many"]).compute() == expected


def test_no_shard_at_all_is_nothing(tmp_path):
    write_state(BenchmarkMetrics(CATEGORIES, TERMS, "min_max_sum"), tmp_path / "state")
    assert merge_states([tmp_path / "state"]).compute() == {"mean": {}, "categories": {}}


def test_what_is_no_state_is_refused_in_one_line(tmp_path):
    good, broken, other, strange = (tmp_path / name for name in ("good", "broken", "other", "strange"))
    write_state(BenchmarkMetrics(CATEGORIES, TERMS, "min_max_sum"), good)
    broken.write_bytes(good.read_bytes()[:40])
    write_state(BenchmarkMetrics(["screw"], TERMS, "min_max_sum"), other)
    save_file({"weight": torch.zeros(1)}, strange)
    write_state(BenchmarkMetrics(CATEGORIES, TERMS, "min_max_sum", memory_gb=1), tmp_path / "memory")
    write_state(BenchmarkMetrics(CATEGORIES, TERMS, "single"), tmp_path / "fusion")
    write_state(BenchmarkMetrics(CATEGORIES, TERMS[::-1], "min_max_sum"), tmp_path / "terms")
    for path, message in {
        broken: "broken is damaged: ",
        tmp_path / "absent": "expected the state of a shard's metrics in .*absent, but there is none",
        strange: "expected the state of a shard's metrics in .*strange, but it holds other tensors",
        other: r"expected .*other to have the categories of .*good, .*, but got \['screw'\]; merge shards of one run",
        tmp_path / "fusion": "expected .*fusion to have the fusion of .*good, min_max_sum, but got single",
        tmp_path / "terms": r"expected .*terms to have the terms of .*good, \['cls_score', 'map_max'\], but got",
        tmp_path / "memory": "expected .*memory to have the memory_gb of .*good, None, but got 1",
    }.items():
        with pytest.raises(UserError, match=message):
            merge_states([good, path])


def test_finished_categories_have_no_state_to_write(tmp_path):
    metrics = fill(SCENARIOS["in turn"], list(range(7)))
    metrics.finish("screw")
    with pytest.raises(ValueError, match=r"to hold all scores, but \['screw'\] are finished"):
        write_state(metrics, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_own_metrics_have_no_state_to_write(tmp_path):
    metrics = fill(SCENARIOS["in turn"]._replace(own=OWN), list(range(7)))
    with pytest.raises(ValueError, match="to have none of the user's own"):
        write_state(metrics, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_full_disk_names_the_file_and_leaves_the_earlier_state(tmp_path):
    path = tmp_path / "state"
    write_state(fill(SCENARIOS["in turn"], [0, 1]), path)
    earlier = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a file that can't grow is a disk that is full
    try:
        with pytest.raises(OSError, match="state") as caught:
            write_state(fill(SCENARIOS["in turn"], list(range(6))), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
