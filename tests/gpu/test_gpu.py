"""On a GPU: what the CPU computes, through the same commands. `pytest -m gpu`; skipped where there is no GPU.

`GPU_TESTS_ON=cpu pytest -m gpu` puts the CPU in the GPU's place, which shows that the tests themselves work. Every
comparison but those with golden arrays is of no use then.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch.nn.functional import scaled_dot_product_attention as attention

from datamodules.errors import UserError
from src import AnomalyDetector
from src.anomaly_module import AnomalyModule
from src.clip.backbone import Backbone, find_backbone
from src.environment import compute_in_float32
from src.metrics import BenchmarkMetrics, exchange
from src.models.dual_path import DualPath
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_baselines import METHODS, Bench, options_of, shots_of
from tests.golden_reference import Golden
from tests.metrics.test_benchmark_metrics import draw, evaluate, new
from tests.test_baselines import maps_of, scores_of
from tests.test_processes import losses_of

ACCELERATOR = os.environ.get("GPU_TESTS_ON", "gpu")
DEVICE = "cuda" if ACCELERATOR == "gpu" else ACCELERATOR
ON_CPU, ON_GPU = "trainer=cpu", f"trainer={ACCELERATOR}"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR == "gpu" and not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def quiet(demo: list[str]) -> list[str]:
    """Overrides for a quiet run of a demo experiment on any device."""
    return [option for option in demo if option != ON_CPU]


TWO_EPOCHS = ["trainer.max_epochs=2", "test=false"]


def on_both(cli: Cli, command: str, *options: str) -> list[Finished]:
    """The command on the CPU and on the GPU."""
    return [cli.ok(command, *options, device, name=name) for name, device in (("cpu", ON_CPU), ("gpu", ON_GPU))]


# Float32


def test_precision_32_is_float32() -> None:
    """With TensorFloat-32, which the caller may have asked for, the products below would be off by some 1e-3."""
    torch.set_float32_matmul_precision("high")
    compute_in_float32()
    assert torch.get_float32_matmul_precision() == "highest"
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    images, kernels = torch.randn(2, 3, 64, 64, generator=generator), torch.randn(128, 3, 16, 16, generator=generator)
    for compute, pair in ((torch.matmul, (left, right)), (torch.conv2d, (images, kernels))):
        exact = compute(*(one.double() for one in pair))
        found = compute(*(one.to(DEVICE) for one in pair)).cpu().double()
        assert float((found - exact).norm() / exact.norm()) < 1e-5
    tokens = torch.randn(1, 2, 1370, 64, generator=generator)
    exact = attention(tokens.double(), tokens.double(), tokens.double())
    found = attention(*[tokens.to(DEVICE)] * 3).cpu().double()
    assert float((found - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_features_do_not_depend_on_an_images_place_in_the_batch(precision: torch.dtype | None) -> None:
    """What is kept of an image serves runs in which it has other neighbours. A width at which products are split up."""
    backbone = Backbone(find_backbone("ViT-B-16", None)).to(DEVICE)
    path = DualPath(backbone, backbone.architecture.quarters, "reference")
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.autocast(DEVICE, dtype=precision) if precision else nullcontext():
        whole, turned = path(images), path(images.roll(3, dims=0))
    for one, other in zip(whole, turned, strict=True):
        assert torch.equal(one.original.roll(3, dims=0), other.original)
        assert torch.equal(one.surgery.roll(3, dims=0), other.surgery)


@pytest.mark.parametrize("model", ["sdp", "sdp_plus"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_maps_of_the_reference(cli: Cli, golden_a: Golden, tmp_path: Path, model: str, compiled: bool) -> None:
    root = golden_a.write_mvtec(tmp_path / "mvtec")
    options = [*golden_backbone(golden_a), ON_GPU, f"test_data.root={root}", "model.representative=mean"]
    if model == "sdp_plus":
        options.append(f"ckpt_path={golden_a.write_reference_checkpoint(tmp_path / 'reference.pth')}")
    done = cli.ok("eval", f"+exp={model}_mvtec", *options, "save_maps=true", f"backbone.compile={compiled}")
    maps = maps_of(done)
    for row, expected in enumerate(golden_a[f"map_{model}_sigma8"].numpy()):
        np.testing.assert_allclose(maps[f"{row:03}"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_baselines(cli: Cli, benches: dict[str, Bench], method: str) -> None:
    """As on the CPU, where they are the golden arrays (tests/test_baselines.py)."""
    bench, options = options_of(method, benches)
    tested = [*options, f"test_data.root={bench.data}", "save_maps=true", *shots_of(method)]
    on_cpu, on_gpu = on_both(cli, "eval", *tested)
    expected, found = maps_of(on_cpu), maps_of(on_gpu)
    assert len(expected) == 6
    for name, one in expected.items():
        np.testing.assert_allclose(found[name], one, rtol=0, atol=1e-4)
    for column in ("image_score", "single_score"):
        assert scores_of(on_gpu, column) == pytest.approx(scores_of(on_cpu, column), abs=1e-4)


# Metrics


@pytest.mark.parametrize("memory_gb", [None, 0.0], ids=["exact", "histogram"])
def test_metrics_of_equal_maps_are_equal(memory_gb: float | None) -> None:
    results = []
    for device in ("cpu", DEVICE):
        metrics: BenchmarkMetrics = new(memory_gb=memory_gb).to(device)
        for seed in range(3):
            batch = draw(seed, n=60)
            on_device = {key: one.to(device) if isinstance(one, torch.Tensor) else one for key, one in batch.items()}
            on_device["terms"] = {name: one.to(device) for name, one in batch["terms"].items()}  # type: ignore[attr-defined]
            metrics.update(**on_device)  # type: ignore[arg-type]
        results.append(metrics.compute())
    assert results[0] == results[1]


# Training


@pytest.mark.parametrize("method", ["sdp_plus_few_shot", "april_gan", "anomalyclip"])
def test_losses_are_the_cpus(cli: Cli, benches: dict[str, Bench], method: str) -> None:
    bench, options = options_of(method, benches)
    own = [one for one in options if not one.startswith("ckpt_path=")]
    own += ["data@train_data=mvtec", f"train_data.root={bench.data}", "train_data.batch_size=2", "allow_leakage=true"]
    own += [f"test_data.root={bench.data}", "train_data.num_workers=0"]
    on_cpu, on_gpu = on_both(cli, "train", *own, *TWO_EPOCHS)
    expected = losses_of(on_cpu.folder)
    assert len(expected) == 2
    assert losses_of(on_gpu.folder) == pytest.approx(expected, rel=1e-4)


TRAIN = ["+exp=sdp_plus_demo", "train_data.categories=[fabric,wood]", "test_data.categories=[coin,nut]"]


def parameters_of(run: Finished) -> dict[str, torch.Tensor]:
    (path,) = run.folder.glob("*.safetensors")
    return load_file(path)


def test_features_from_the_cache_train_the_same(cli: Cli, quiet: list[str]) -> None:
    without, cold, warm = (
        cli.ok("train", *TRAIN, *quiet, ON_GPU, *TWO_EPOCHS, f"feature_cache.enabled={cached}", name=name)
        for name, cached in (("without", "false"), ("cold", "true"), ("warm", "true"))
    )
    assert warm.provenance["feature_cache"]["train"]["hits"] == warm.provenance["feature_cache"]["train"]["images"]
    assert losses_of(cold.folder) == pytest.approx(losses_of(without.folder), rel=1e-5)
    assert losses_of(warm.folder) == pytest.approx(losses_of(without.folder), rel=1e-5)


def test_a_stopped_training_goes_on(cli: Cli, quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TRAIN, *quiet, ON_GPU, *TWO_EPOCHS]
    whole = cli.ok("train", *options, name="whole")

    def stop_in_the_second_epoch(module: AnomalyModule, *batch: object) -> torch.Tensor:
        if module.current_epoch == 1:
            raise UserError("stopped")
        return step(module, *batch)

    step = AnomalyModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(AnomalyModule, "training_step", stop_in_the_second_epoch)
        stopped = cli("train", *options, name="stopped")
    assert stopped.code == 1
    resumed = cli.ok("train", *options, name="stopped")
    expected, found = parameters_of(whole), parameters_of(resumed)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_one_process_of_ddp_is_one_process(cli: Cli, quiet: list[str]) -> None:
    plain = cli.ok("train", *TRAIN, *quiet, ON_GPU, "trainer.max_epochs=2", name="plain")
    options = ["trainer=ddp", "trainer.devices=1", f"trainer.accelerator={ACCELERATOR}"]
    ddp = cli.ok("train", *TRAIN, *quiet, *options, "trainer.max_epochs=2", name="ddp")
    assert losses_of(ddp.folder) == pytest.approx(losses_of(plain.folder), rel=1e-4)
    assert ddp.metrics["mean"] == pytest.approx(plain.metrics["mean"], abs=1e-4)


# Half precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("experiment", ["sdp_demo", "sdp_plus_demo"])
def test_half_precision_moves_the_metrics_little(
    cli: Cli, quiet: list[str], tmp_path: Path, precision: str, experiment: str
) -> None:
    tested = [f"+exp={experiment}", *quiet]
    if experiment == "sdp_plus_demo":
        cli.ok("train", *tested, ON_GPU, "test=false", "trainer.max_epochs=5", name="trained")
        (weights,) = (tmp_path / "trained").glob("*.safetensors")
        tested.append(f"ckpt_path={weights}")
    exact = cli.ok("eval", *tested, ON_CPU, name="exact")
    rounded = cli.ok("eval", *tested, ON_GPU, f"trainer.precision={precision}", name="rounded")
    if ACCELERATOR == "gpu":
        assert rounded.provenance["device"]["precision"] == precision
    assert len(exact.metrics["mean"]) == 7
    assert rounded.metrics["mean"] == pytest.approx(exact.metrics["mean"], abs=0.005)


# Several processes


def test_nccl_exchanges_what_one_process_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A group of one, which goes through every collective as a group of many does."""
    if dist.is_initialized():  # by the runs of other tests
        dist.destroy_process_group()
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        alone = evaluate(draw(0, n=60), draw(1, n=60))
        monkeypatch.setattr(exchange, "is_shared", lambda: True)
        for values in (torch.arange(5), torch.tensor(3), torch.empty(0), torch.rand(7, dtype=torch.float64)):
            assert torch.equal(exchange.summed(values), values)
            if values.ndim:
                assert torch.equal(exchange.gathered(values), values)
        assert exchange.gathered_objects({"a": 1}) == [{"a": 1}]
        assert evaluate(draw(0, n=60), draw(1, n=60)) == alone
    finally:
        dist.destroy_process_group()


# One's own images


def test_a_detector_on_the_cpu_leaves_the_gpu_alone() -> None:
    """Or a server that forks later could not use it."""
    code = (
        "import torch; from src import AnomalyDetector; import numpy as np\n"
        "detector = AnomalyDetector.from_experiment('sdp_demo')\n"
        "detector.predict(np.zeros((96, 96, 3), np.uint8), category='nut')\n"
        "print(torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_the_detector_and_predict(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    root = golden_a.write_mvtec(tmp_path / "mvtec")
    options = [*golden_backbone(golden_a), f"source={root / 'candle' / 'test'}", "category=candle"]
    options.append("model.representative=mean")
    on_cpu, on_gpu = on_both(cli, "predict", "+exp=sdp_mvtec", *options, "save_maps=true")
    files = [root / "candle" / "test" / row["image_path"] for row in on_cpu.predictions]
    scores = [float(row["single_score"]) for row in on_cpu.predictions]
    assert [float(row["single_score"]) for row in on_gpu.predictions] == pytest.approx(scores, abs=1e-4)
    own = [one for one in golden_backbone(golden_a) if one.startswith("backbone.")]
    detector = AnomalyDetector.from_experiment("sdp_mvtec", overrides=[*own, "model.representative=mean"]).to(DEVICE)
    found = detector.predict(files, category="candle")
    assert [one.single_score for one in found] == pytest.approx(scores, abs=1e-4)
    maps = maps_of(on_cpu)
    for one, path in zip(found, files, strict=True):
        np.testing.assert_allclose(one.anomaly_map, maps[path.stem], rtol=0, atol=1e-4)


def test_a_run_names_its_gpu(cli: Cli, quiet: list[str]) -> None:
    done = cli.ok("eval", "+exp=sdp_demo", *quiet, ON_GPU, "test_data.categories=[nut]")
    name = torch.cuda.get_device_name() if ACCELERATOR == "gpu" else "cpu"
    assert name in str(done.provenance["device"])
    with (done.folder / "predictions.csv").open(newline="") as file:
        assert all(np.isfinite(float(row["single_score"])) for row in csv.DictReader(file))
