"""What Lightning does for training on request: accumulation, clipping, early stopping, the monitor, debugging."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli import NO_REPORT, Cli, Finished, golden_backbone
from tests.golden_reference import Golden


@pytest.fixture(scope="session")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("training") / "mvtec").parent


@pytest.fixture
def train(golden_a: Golden, data: Path) -> list[str]:
    """Training on the three images of one category."""
    few = ["prompts.templates=['a photo of a {}.']", "model.representative=mean", f"paths.data_dir={data}"]
    on_pcb = ["data@train_data=mvtec", "train_data.categories=[pcb1]", "train_data.num_workers=0"]
    return [*golden_backbone(golden_a), *few, "model=sdp_plus", "test_data.categories=[candle]", *on_pcb]


HELD_OUT = ["train_data.categories=null", "val_categories=[candle]", "select=pixel_AP", "allow_leakage=true"]


def projections(run: Finished) -> torch.Tensor:
    """All trained parameters, in one vector."""
    return torch.cat([value.flatten() for _, value in sorted(load_file(weights_of(run)).items())])


def weights_of(run: Finished) -> Path:
    return next(run.folder.glob("*.safetensors"))


def logged(run: Finished, column: str) -> list[float]:
    with next(run.folder.glob("csv/version_*/metrics.csv")).open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


@pytest.mark.slow
def test_accumulated_batches_make_the_step_of_a_larger_batch(cli: Cli, train: list[str]) -> None:
    # SGD: Adam's first steps hardly depend on the gradient's size. The losses are means over the images of a batch.
    sgd = [*train, "trainer.max_epochs=1", "optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1", "test=false"]
    runs = {
        name: projections(cli.ok("train", *sgd, *options, name=name))
        for name, options in {
            "three": ["train_data.batch_size=3"],
            "accumulated": ["train_data.batch_size=1", "trainer.accumulate_grad_batches=3"],
            "one": ["train_data.batch_size=1"],
        }.items()
    }
    start = projections(cli.ok("train", *sgd, "optimizer.lr=1e-30", name="start"))
    moved = (runs["three"] - start).norm()
    assert (runs["accumulated"] - runs["three"]).norm() < 1e-3 * moved
    assert (runs["one"] - runs["three"]).norm() > 1e-2 * moved


@pytest.mark.slow
def test_gradients_are_clipped_to_a_norm(cli: Cli, train: list[str]) -> None:
    sgd = [
        *train,
        "trainer.max_epochs=1",
        "optimizer._target_=torch.optim.SGD",
        "train_data.batch_size=3",
        "test=false",
    ]
    clip = "trainer.gradient_clip_val=1e-3"
    start = projections(cli.ok("train", *sgd, "optimizer.lr=1e-30", name="start"))
    free = projections(cli.ok("train", *sgd, "optimizer.lr=10", name="free"))
    clipped = projections(cli.ok("train", *sgd, "optimizer.lr=10", clip, name="clipped"))
    # One step of the rate 10 times the gradient, whose norm is 1e-3 at most.
    assert float((clipped - start).norm()) == pytest.approx(1e-2, rel=1e-3)
    assert (free - start).norm() > 2e-2


STOPPING = [*HELD_OUT, "callbacks=[early_stopping]", "callbacks.early_stopping.patience=1"]
# Nothing is learnt, so no epoch is better than the first.
HOPELESS = ["optimizer.lr=1e-30", "trainer.max_epochs=6"]


def without_progress(options: list[str]) -> list[str]:
    """The list of callbacks is given anew, so there is no progress bar and no page to take out."""
    return [option for option in options if option not in ("~callbacks.progress", NO_REPORT)]


def test_training_stops_when_the_held_out_categories_get_no_better(cli: Cli, train: list[str]) -> None:
    options = [*without_progress(train), *STOPPING, *HOPELESS]
    run = cli.ok("train", *options)
    assert len(logged(run, "val/pixel_AP")) == 2
    assert run.provenance["trained_weights"]["epochs"] == 1
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_run_that_was_killed_after_it_had_stopped_trains_no_more(
    cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*without_progress(train), *STOPPING, *HOPELESS]

    def power_cut(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            cli("train", *options)
    last = cli.folder / "run" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["origin"]["epochs"]
    assert "callbacks.early_stopping.patience" in cli.error("train", *options, "callbacks.early_stopping.patience=2")
    resumed = cli.ok("train", *options)
    assert torch.load(last, weights_only=True)["origin"]["epochs"] == before == 2
    assert resumed.provenance["trained_weights"]["epochs"] == 1


def test_early_stopping_needs_something_to_watch(cli: Cli, train: list[str]) -> None:
    options = [*without_progress(train), "callbacks=[early_stopping]"]
    assert "val_categories" in cli.error("train", *options)
    assert "val_categories" in cli.error("train", *options, "callbacks.early_stopping.monitor=val/pixel_AP")
    watched = ["callbacks.early_stopping.monitor=train/loss_epoch", "callbacks.early_stopping.mode=min"]
    cli.ok("train", *options, *watched, "trainer.max_epochs=1", "test=false")


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [[], [option for option in HELD_OUT if "select" not in option]])
def test_the_last_epoch_is_tested_also_where_it_is_not_validated(
    cli: Cli, train: list[str], held_out: list[str]
) -> None:
    rare = cli.ok("train", *train, *held_out, "trainer.max_epochs=3", "+trainer.check_val_every_n_epoch=2", name="rare")
    often = cli.ok("train", *train, *held_out, "trainer.max_epochs=3", name="often")
    assert rare.provenance["trained_weights"]["epochs"] == 3
    assert torch.equal(projections(rare), projections(often))


def test_an_epoch_that_was_not_validated_can_not_be_selected(cli: Cli, train: list[str]) -> None:
    options = [*train, *HELD_OUT, "trainer.max_epochs=1", "+trainer.check_val_every_n_epoch=2"]
    message = cli.error("train", *options)
    assert "check_val_every_n_epoch" in message
    assert (cli.folder / "run" / "checkpoints" / "last.ckpt").is_file()


def test_the_default_callbacks_stay_beside_the_optional_ones(cli: Cli, train: list[str]) -> None:
    callbacks = "callbacks=[default,early_stopping,learning_rate]"
    bar = [option for option in train if "progress" not in option]
    run = cli.ok("train", *bar, callbacks, *HELD_OUT, "optimizer.lr=3e-3", "trainer.max_epochs=2", "test=false")
    assert set(run.provenance["config"]["callbacks"]) == {
        "progress",
        "table",
        "maps",
        "overlays",
        "report",
        "early_stopping",
        "learning_rate",
    }
    assert "Epoch 1/1" in run.out  # the progress bar's
    assert logged(run, "lr-Adam") == pytest.approx([3e-3, 3e-3])


@pytest.mark.slow
def test_debug_configs(cli: Cli, train: list[str]) -> None:
    dry = cli.ok("train", *train, "+debug=fast_dev_run", name="dry")
    assert "cut short by fast_dev_run=True" in dry.out.splitlines()[0]
    assert not list(dry.folder.rglob("*.ckpt"))

    one_batch = ["train_data.batch_size=2", "optimizer.lr=1e-3", "trainer.max_epochs=15"]
    over = cli.ok("train", *train, "+debug=overfit", *one_batch, "train_data.shuffle=true", name="over")
    steady = cli.ok("train", *train, "+debug=overfit", *one_batch, name="steady")
    assert logged(over, "train/loss_epoch") == logged(steady, "train/loss_epoch")
    falling = logged(over, "train/loss_epoch")
    assert len(falling) == 15
    assert falling[-1] < 0.8 * falling[0]
    assert not (over.folder / "metrics.json").exists()

    profiled = cli.ok("train", *train, "+debug=profiler", "trainer.max_epochs=1", name="profiled")
    for stage, step in {"fit": "training_step", "test": "test_step"}.items():
        assert step in (profiled.folder / f"{stage}-profile.txt").read_text()
    assert json.loads((profiled.folder / "metrics.json").read_text())["categories"]
