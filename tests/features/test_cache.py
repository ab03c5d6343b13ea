"""Runs with and without the feature cache: the same results, and the tower only where it is needed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.features.setup import open_feature_cache
from src.features.store import ArrayStore
from src.models.dual_path import DualPath, Level
from src.models.sdp_plus import SDPPlus
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import ROOT, Golden

TRAIN = [
    "model=sdp_plus",
    "model.representative=mean",
    "prompts.templates=['a photo of a {}.']",
    "data@train_data=mvtec",
    "train_data.categories=[pcb1]",
    "train_data.num_workers=0",
    "train_data.batch_size=2",
    "test_data.categories=[candle]",
    "test_data.batch_size=2",
    "trainer.max_epochs=3",
    "optimizer.lr=1e-2",
]
OFF = "feature_cache.enabled=false"


@pytest.fixture
def data(golden_a: Golden, tmp_path: Path) -> Path:
    """Six images of the golden file's size: three of each of two categories."""
    golden_a.write_mvtec(tmp_path / "data" / "mvtec")
    return tmp_path / "data"


@pytest.fixture
def options(golden_a: Golden, data: Path) -> list[str]:
    return [*golden_backbone(golden_a), *TRAIN, f"paths.data_dir={data}"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images the tower has seen, call by call; copies that fill up a batch are none."""
    calls: list[int] = []
    forward = DualPath.forward

    def counting(self: DualPath, images: Tensor) -> list[Level]:
        calls.append(len(images.unique(dim=0)))
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(DualPath, "forward", counting)
        yield calls


class Runs:
    """Trainings in numbered folders, and how many images the tower saw in each."""

    def __init__(self, cli: Cli, options: list[str], seen: list[int]) -> None:
        self.cli, self.options, self.seen, self.count = cli, options, seen, 0

    def __call__(self, *overrides: str) -> tuple[Finished, int]:
        self.count += 1
        before = sum(self.seen)
        run = self.cli.ok("train", *self.options, *overrides, name=f"run{self.count}")
        return run, sum(self.seen) - before


@pytest.fixture
def train(cli: Cli, options: list[str], seen: list[int]) -> Runs:
    return Runs(cli, options, seen)


def results(run: Finished) -> tuple[bytes, bytes]:
    return tuple((run.folder / name).read_bytes() for name in ("metrics.json", "predictions.csv"))  # type: ignore[return-value]


def files(cli: Cli) -> list[Path]:
    return sorted((cli.folder / "cache" / "features").rglob("*.safetensors"))


@pytest.mark.slow
def test_a_cached_run_is_an_uncached_run(train: Runs) -> None:
    plain, without = train(OFF)
    cold, at_first = train()
    warm, again = train()
    assert (without, at_first, again) == (3 * 3 + 3, 3 + 3, 0)
    assert results(plain) == results(cold) == results(warm)
    assert "feature_cache" not in plain.provenance
    assert "features of 3 images of MVTec AD: 0 cached, 3 computed" in cold.out
    assert "features of 3 images of MVTec AD: 3 cached, 0 computed" in warm.out
    served = warm.provenance["feature_cache"]
    assert {role: (one["images"], one["hits"]) for role, one in served.items()} == {"train": (3, 3), "test": (3, 3)}
    assert served["train"]["key"] == cold.provenance["feature_cache"]["test"]["key"]


@pytest.mark.slow
def test_parameters_that_move_to_a_device_can_still_be_trained(train: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = train(OFF)

    def move(method: SDPPlus, device: torch.device) -> SDPPlus:
        """As from one device to another: each parameter has other memory after it."""
        for parameter in method.parameters():
            parameter.data = parameter.data.clone()
        return method

    monkeypatch.setattr(SDPPlus, "to", move)
    cold, at_first = train()
    assert at_first == 6
    assert results(plain) == results(cold)


@pytest.mark.slow
def test_only_what_is_read_is_kept(train: Runs, cli: Cli) -> None:
    train()
    parts = [path.parts[-3] for path in files(cli)]
    # Masks of normal and anomalous images alike; of the training images no surgery tokens.
    assert sorted(parts) == ["mask"] * 6 + ["original"] * 6 + ["surgery"] * 3


@pytest.mark.slow
def test_in_any_order_with_validation(train: Runs, data: Path) -> None:
    shutil.copytree(data / "mvtec" / "candle", data / "mvtec" / "bottle")
    held_out = ["train_data.categories=[pcb1,bottle]", "val_categories=[bottle]", "allow_leakage=true"]
    selected = [*held_out, "train_data.shuffle=true", "select=pixel_AP"]
    plain, without = train(OFF, *selected)
    cached, at_first = train(*selected)
    assert (without, at_first) == (3 * (3 + 3) + 3, 6)  # `bottle` is a copy of `candle`: what is the same is there
    assert results(plain) == results(cached)
    assert cached.provenance["trained_weights"] == plain.provenance["trained_weights"]
    assert set(cached.provenance["feature_cache"]) == {"train", "val", "test"}


@pytest.mark.slow
def test_masks_of_other_sizes_need_no_tower(train: Runs) -> None:
    train()
    for size in ("160", "native"):
        plain, _ = train(OFF, f"test_data.eval_size={size}")
        cached, tower = train(f"test_data.eval_size={size}")
        assert tower == 0
        assert results(plain) == results(cached)


@pytest.mark.slow
def test_what_decides_the_features_decides_the_key(train: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    others = ["optimizer.lr=1e-3", "seed=1", "model.smoothing_sigma=2"]
    assert train(*others, "train_data.shuffle=true", "trainer.max_epochs=1")[1] == 0
    for change in ("model.feature_tap=block_output", "model.feature_layers=[3,6,9]", "trainer.precision=bf16-mixed"):
        assert train(change, "trainer.max_epochs=1")[1] == 6
    assert train("train_data.batch_size=3", "trainer.max_epochs=1")[1] == 3
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        assert train("backbone.compile=true", "trainer.max_epochs=1")[1] == 6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert train("trainer.max_epochs=1")[1] == 6


@pytest.mark.slow
def test_other_weights_have_other_features(train: Runs, golden_a: Golden, tmp_path: Path) -> None:
    train()
    state = torch.load(golden_a.weights_path, weights_only=True)
    state["visual.class_embedding"] += 1
    torch.save(state, tmp_path / "other.pt")
    other = f"backbone.pretrained={tmp_path / 'other.pt'}"
    plain, _ = train(OFF, other)
    cached, tower = train(other)
    assert tower == 6
    assert results(plain) == results(cached)


@pytest.mark.slow
def test_another_image_under_an_old_name(train: Runs, data: Path) -> None:
    train()
    first, second = sorted((data / "mvtec" / "candle" / "test").glob("broken/*.png"))
    shutil.copy(first, second)
    plain, _ = train(OFF)
    swapped, tower = train()
    assert tower == 0  # that image is known
    assert results(plain) == results(swapped)


@pytest.mark.slow
def test_another_mask_under_an_old_name(train: Runs, data: Path) -> None:
    before, _ = train()
    first, second = sorted((data / "mvtec" / "candle" / "ground_truth").glob("broken/*.png"))
    shutil.copy(first, second)
    plain, _ = train(OFF)
    other, tower = train()
    assert tower == 0
    assert results(plain) == results(other) != results(before)


@pytest.mark.slow
def test_a_file_that_is_cut_off_is_computed_again(train: Runs, cli: Cli) -> None:
    before, _ = train()
    damaged = next(path for path in files(cli) if path.parts[-3] == "original")
    os.truncate(damaged, 1000)
    after, tower = train()
    assert tower == 1
    assert results(before) == results(after)
    assert train()[1] == 0


@pytest.mark.parametrize("extra", [["trainer.precision=bf16-mixed"], ["+trainer.limit_test_batches=1"]])
@pytest.mark.slow
def test_batches_of_one_size_under_other_settings(cli: Cli, options: list[str], extra: list[str]) -> None:
    plain = cli.ok("eval", *options, "model=sdp", *extra, name="plain")
    for name in ("cold", "warm"):
        run = cli.ok("eval", *options, "model=sdp", *extra, "feature_cache.enabled=true", name=name)
        assert results(run) == results(plain)


@pytest.mark.slow
def test_sentences_that_are_known_change_no_figure(cli: Cli, golden_a: Golden, data: Path) -> None:
    options = [*golden_backbone(golden_a), "model=sdp", f"paths.data_dir={data}", "data@test_data=mvtec"]
    cold = cli.ok("eval", *options, f"paths.cache_dir={cli.folder / 'other'}", name="cold")
    cli.ok("eval", *options, "test_data.categories=[pcb1]", name="one")
    assert results(cli.ok("eval", *options, name="both")) == results(cold)


def test_half_precision_is_half_the_size_and_close(train: Runs, cli: Cli) -> None:
    plain, _ = train(OFF)
    half, _ = train("feature_cache.dtype=float16")
    for name, value in plain.metrics["mean"].items():
        assert half.metrics["mean"][name] == pytest.approx(value, abs=2e-3)
    assert half.predictions != plain.predictions
    sizes = {path.parts[-3]: path.stat().st_size for path in files(cli)}
    grid = 225  # patches of a golden image
    assert sizes["original"] < 1.1 * 4 * grid * 2 * 1000


def test_features_that_float16_can_not_hold(train: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    features = SDPPlus.features
    monkeypatch.setattr(
        SDPPlus, "features", lambda self, images: {k: v * 1e6 for k, v in features(self, images).items()}
    )
    run, _ = train("feature_cache.dtype=float16")
    assert "feature cache off: the features are too large for float16" in run.out


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train_data.transforms=augment"], "train_data.transforms=augment gives other images in each epoch"),
        (["backbone.pretrained=null"], "the backbone's weights are random"),
        (["+trainer.limit_test_batches=1"], "the run is cut short by limit_test_batches=1"),
        (["feature_cache.max_gb=1e-5"], "are needed, feature_cache.max_gb is 1e-05"),
    ],
)
def test_off_with_a_reason(train: Runs, cli: Cli, overrides: list[str], line: str) -> None:
    run, tower = train(*overrides)
    assert tower >= 3 * 3 + 2
    assert f"feature cache off: {line}" in run.out or line in run.out
    assert files(cli) == []


@pytest.mark.parametrize("transforms", ["augment", "mosaic"])
@pytest.mark.parametrize("enabled", ["auto", True])
def test_off_where_training_images_differ_between_epochs(transforms: str, enabled: str | bool) -> None:
    config = OmegaConf.create({"feature_cache": {"enabled": enabled}, "train_data": {"transforms": transforms}})
    reason = open_feature_cache(config, None, None, None, trains=True)  # type: ignore[arg-type]
    assert reason == f"train_data.transforms={transforms} gives other images in each epoch"


def test_one_of_several_processes_computes_them_only_if_told() -> None:
    config = OmegaConf.create(
        {"feature_cache": {"enabled": "auto"}, "train_data": {"transforms": "default"}, "trainer": {}}
    )
    trainer, method = SimpleNamespace(world_size=2), SimpleNamespace(frozen=object())
    source = SimpleNamespace(weights=SimpleNamespace(sha256="of some"))
    reason = open_feature_cache(config, source, method, trainer, trains=True)  # type: ignore[arg-type]
    assert "one of several processes" in str(reason)


@pytest.mark.slow
def test_evaluations_use_it_only_if_told(cli: Cli, options: list[str], seen: list[int]) -> None:
    plain = cli.ok("eval", *options, "model=sdp", name="plain")
    assert files(cli) == []
    for name, tower in (("cold", 3), ("warm", 0)):
        seen.clear()
        run = cli.ok("eval", *options, "model=sdp", "feature_cache.enabled=true", name=name)
        assert sum(seen) == tower
        assert results(run) == results(plain)


@pytest.mark.slow
def test_a_full_disk_does_not_end_a_run(train: Runs, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = train(OFF)
    write, calls = ArrayStore.write, []

    def fill_up(self: ArrayStore, path: Path, array: Tensor) -> Tensor:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(self, path, array)

    monkeypatch.setattr(ArrayStore, "write", fill_up)
    run, _ = train()
    assert "feature cache off: [Errno 28] No space left on device" in run.out
    assert "off" in run.provenance["feature_cache"]["train"]
    assert results(run) == results(plain)
    # What the training images had got is removed; the test images came later, when there was room.
    assert {path.parts[-3] for path in files(cli)} == {"mask", "original", "surgery"}
    assert len(files(cli)) == 9


@pytest.mark.slow
def test_old_features_make_room_for_new_ones(train: Runs, cli: Cli) -> None:
    train()
    size = sum(path.stat().st_size for path in files(cli))
    old = {path for path in files(cli) if path.parts[-3] != "mask"}
    limit = f"feature_cache.max_gb={1.2 * size / 1e9}"
    _, tower = train("model.feature_tap=block_output", limit)
    assert tower == 6
    assert sum(path.stat().st_size for path in files(cli)) <= 1.2 * size
    assert len(old - set(files(cli))) >= 6
    assert train("model.feature_tap=block_output", limit)[1] == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_cache(
    train: Runs, cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = [*options, "train_data.shuffle=true"]
    whole, _ = train("train_data.shuffle=true", OFF)
    loss, calls = SDPPlus.loss, []

    def power_cut(self: SDPPlus, *args: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return loss(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SDPPlus, "loss", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            cli("train", *shuffled, name="cut")
    resumed = cli.ok("train", *shuffled, "feature_cache.max_gb=30", name="cut")
    assert len(resumed.provenance["resumed"]) == 1
    assert results(resumed) == results(whole)


@pytest.mark.slow
def test_two_runs_at_once(cli: Cli, options: list[str], train: Runs) -> None:
    plain, _ = train(OFF)
    places = [f"paths.cache_dir={cli.folder / 'cache'}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "src.train", *options, *places, f"paths.output_dir={cli.folder / name}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    outputs = [run.communicate()[0] for run in started]
    assert [run.returncode for run in started] == [0, 0]
    assert all("cache off" not in output for output in outputs)
    for name in ("a", "b"):
        assert results(Finished(0, "", "", cli.folder / name)) == results(plain)
    assert train()[1] == 0
