"""Several processes give the metrics of one, to the last bit, however the images are shared out."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch.multiprocessing

from tests.metrics.sharing import PIXELS, SCENARIOS, draw, fill, run_process, single_metrics


@pytest.fixture(
    scope="module",
    params=[pytest.param(2, id="2 processes", marks=pytest.mark.slow), pytest.param(3, id="3 processes")],
)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process got, per scenario; they are started once for all, by a server that imports once for all."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(["tests.metrics.sharing"])
    arguments = (request.param, str(folder))
    torch.multiprocessing.start_processes(run_process, arguments, nprocs=request.param, start_method="forkserver")
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.filterwarnings("ignore:.*histogram")
def test_benchmark_metrics(shared: list[dict], name: str) -> None:
    expected = fill(SCENARIOS[name], list(range(17))).compute()
    own = SCENARIOS[name].own or {}
    assert len(expected["mean"]) == {"without labels": 4, "without masks": 3}.get(name, 7) + len(own)
    assert list(expected["categories"]) == ["screw", "bottle", "good"]
    assert ("pixel_AUROC_error" in expected["categories"]["screw"]) == name.startswith("histogram")
    for results in shared:
        assert results[name] == [expected, expected]


def test_single_metrics(shared: list[dict]) -> None:
    assert all(results["single"] == single_metrics(range(17)) for results in shared)


def test_what_processes_can_not_share_is_refused(shared: list[dict]) -> None:
    for results in shared:
        finish, average, smallest = results["refused"]
        assert finish == "screw can't be finished: several processes share its images"
        assert "metric average to have lists, sums, minima and maxima as states" in average
        assert "but it has the states ['average']; use one process" in average
        assert "Expected metric smallest" in smallest
        assert "but it holds other metrics; use one process" in smallest


def test_the_scenarios_are_what_they_say() -> None:
    data = draw()
    assert data["label"].sum() > 5
    assert data["mask"][0].numel() == PIXELS
    for processes in (2, 3):
        blocks = [{i for i in range(17) if SCENARIOS["in blocks"].has(i, r, processes)} for r in range(processes)]
        assert sorted(i for block in blocks for i in block) == list(range(17))
        assert all({data["category"][i] for i in block} != set(data["category"]) for block in blocks)
