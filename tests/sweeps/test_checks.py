"""Sweeps: what is refused, what a failed trial costs, and what trials leave."""

from __future__ import annotations

import json
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer

from src.clip.backbone import Backbone
from src.models.sdp_plus import SDPPlus
from src.sweeps.trial import read_trials
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import Golden
from tests.records import PROVENANCE

TRAIN = [
    "model=sdp_plus",
    "data@train_data=mvtec",
    "train_data.num_workers=0",
    "test_data.categories=[candle]",
    "trainer.max_epochs=1",
    "allow_leakage=true",
]
HELD_OUT = ["val_categories=[candle]", "select=pixel_AP"]


@pytest.fixture(scope="session")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("sweeps") / "mvtec").parent


@pytest.fixture
def options(golden_a: Golden, data: Path) -> list[str]:
    few = ["prompts.templates=['a photo of a {}.']", "model.representative=mean"]
    return [*golden_backbone(golden_a), *few, f"paths.data_dir={data}"]


def errors(done: Finished) -> list[str]:
    return [line.removeprefix("error: ") for line in done.err.splitlines() if line.startswith("error: ")]


def statuses(sweep: Path) -> list[str]:
    return [trial.status for trial in read_trials(sweep)]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_failed_trials_are_named_at_the_end_and_the_others_finish(cli: Cli, options: list[str]) -> None:
    done = cli("eval", "-m", *options, "+exp=sdp_mvtec", "model.feature_layers=[99],[12],[98]", name="sweep")
    assert done.code == 1
    assert len(errors(done)) == 2
    for line, (trial, layer) in zip(errors(done), [(0, 99), (2, 98)], strict=True):
        assert line.startswith(f"trial {trial} (")
        assert f"model.feature_layers=[{layer}]" in line
        assert line.endswith(f"from 1 to 12 for ViT-B-16-plus-240, but got [{layer}]")
    assert done.err.splitlines()[-2:] == [f"error: {line}" for line in errors(done)]
    assert [path.parent.name for path in done.folder.glob("*/metrics.json")] == ["1"]
    assert statuses(done.folder) == ["failed", "finished", "failed"]


@pytest.mark.slow
def test_a_bug_in_one_trial_does_not_end_the_sweep(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SDPPlus.loss

    def fails_once(self: SDPPlus, *args: Any) -> Any:
        if self.dice_weight == 2:
            raise ZeroDivisionError("two")
        return loss(self, *args)

    monkeypatch.setattr(SDPPlus, "loss", fails_once)
    # One trial at a time, as a search draws them.
    one_by_one = "hydra.sweeper.max_batch_size=1"
    done = cli("train", "-m", *options, *TRAIN, "model.dice_weight=1,2,3", one_by_one, name="sweep")
    assert done.code == 1
    assert [line.split(": ", 1)[1] for line in errors(done)] == ["ZeroDivisionError: two"]
    assert "Traceback" in done.err
    assert statuses(done.folder) == ["finished", "failed", "finished"]

    monkeypatch.undo()
    kept = content(done.folder / "0")
    again = cli.ok("train", "-m", *options, *TRAIN, "model.dice_weight=1,2,3", one_by_one, name="sweep")
    assert statuses(again.folder) == ["finished"] * 3
    assert "trial 0 is finished already" in again.out
    assert content(done.folder / "0") == kept


@pytest.mark.slow
def test_another_sweep_leaves_an_earlier_one_alone(cli: Cli, options: list[str]) -> None:
    first = cli.ok("eval", "-m", *options, "+exp=sdp_mvtec", "model.smoothing_sigma=2,4", name="sweep")
    kept = content(first.folder)
    assert any(path.name == "multirun.yaml" for path in kept)
    message = cli.error("eval", "-m", *options, "+exp=sdp_mvtec", "model.smoothing_sigma=8,6", name="sweep")
    assert "model.smoothing_sigma=2,4" in message
    assert "paths.output_dir" in message
    assert content(first.folder) == kept
    single = cli.ok("eval", *options, "+exp=sdp_mvtec", name="single")
    assert "holds a run" in cli.error("eval", "-m", *options, "+exp=sdp_mvtec", "seed=1,2", name="single")
    assert not (single.folder / "multirun.yaml").exists()


@pytest.mark.parametrize("count", ["SLURM_STEP_NUM_TASKS", "WORLD_SIZE"])
def test_a_sweep_is_started_once(count: str, cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(count, "2")
    assert "started once" in cli.error("eval", "-m", *options, "+exp=sdp_mvtec", "seed=1,2", name="sweep")
    assert not (cli.folder / "sweep").exists()


def test_a_sweep_that_could_not_start_does_not_occupy_its_folder(cli: Cli, options: list[str]) -> None:
    assert "sdp_cifar" in cli.error("eval", "-m", *options, "+exp=sdp_cifar", "seed=1,2", name="sweep")
    cli.ok("eval", "-m", *options, "+exp=sdp_mvtec", "seed=1,2", name="sweep")


@pytest.mark.slow
def test_training_without_a_test_returns_the_score_of_the_selected_epoch(cli: Cli, options: list[str]) -> None:
    sweep = cli.ok("train", "-m", *options, *TRAIN, *HELD_OUT, "test=false", "optimizer.lr=1e-4,1e-2", name="sweep")
    trials = list(read_trials(sweep.folder))
    assert [trial.status for trial in trials] == ["finished", "finished"]
    for trial in trials:
        folder = sweep.folder / str(trial.number)
        trained = json.loads((folder / "provenance.json").read_text())["trained_weights"]
        assert trained["score"] == trial.objective
        assert not (folder / "metrics.json").exists()
        # The held-out category is the benchmark here, so that another way to the score exists.
        weights = f"ckpt_path={folder / trained['file']}"
        evaluate = ["model=sdp_plus", "test_data.categories=[candle]", "allow_leakage=true"]
        tested = cli.ok("eval", *options, *evaluate, weights, name=f"test_{trial.number}")
        assert tested.metrics["mean"]["pixel_AP"] == pytest.approx(trial.objective, abs=1e-6)
    assert trials[0].objective != trials[1].objective
    assert "-> no test" in sweep.out
    assert "leaves nothing to do" in cli.error("eval", *options, "+exp=sdp_mvtec", "test=false")


def test_provenance_has_the_command_of_the_trial_alone(cli: Cli, options: list[str]) -> None:
    sweep = cli.ok("eval", "-m", *options, "+exp=sdp_mvtec", "seed=1,2", name="sweep")
    command = json.loads((sweep.folder / "1" / "provenance.json").read_text())["command"]
    assert command.startswith("python -m src.eval ")
    assert "seed=2" in command.split()
    assert "seed=1,2" not in command


def test_a_trial_over_several_processes_has_a_command_line_of_its_own(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    trained = {"file": "w.safetensors", "selected_by": "pixel_AP", "score": 0.25, "epochs": 1}

    def record(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        failed = len(calls) == 1
        target = Path(command[-1].removeprefix("paths.output_dir="))
        (target / "provenance.json").write_text(json.dumps(PROVENANCE | {"trained_weights": trained}))
        return subprocess.CompletedProcess(command, int(failed), stderr="noise\nerror: no GPU\n" if failed else "")

    monkeypatch.setattr("src.sweeps.trial.subprocess.run", record)
    done = cli("train", "-m", *options, *TRAIN, "trainer.devices=2", "optimizer.lr=1e-3,1e-2", name="sweep")
    assert [line.rsplit(": ", 1)[1] for line in errors(done)] == ["no GPU"]
    assert [trial.objective for trial in read_trials(done.folder)] == [None, 0.25]
    for number, (command, lr) in enumerate(zip(calls, ("0.001", "0.01"), strict=True)):
        assert command[1:3] == ["-m", "src.train"]
        assert f"optimizer.lr={lr}" in command
        assert command[-1] == f"paths.output_dir={done.folder / str(number)}"
        assert "-m" not in command[3:]


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_trial(cli: Cli, options: list[str]) -> None:
    train = [*options, *TRAIN, *HELD_OUT]
    here = cli.ok("train", "-m", *train, "seed=3", name="here")
    # `auto` is one process on a CPU, but could be several.
    fresh = cli.ok("train", "-m", *train, "seed=3", "trainer.devices=auto", name="fresh")
    assert [trial.objective for trial in read_trials(fresh.folder)] == [t.objective for t in read_trials(here.folder)]
    metrics = [(sweep.folder / "0" / "metrics.json").read_bytes() for sweep in (here, fresh)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_each_process_of_a_trial_has_the_trials_own_settings(cli: Cli, options: list[str]) -> None:
    train = [*options, *TRAIN, *HELD_OUT, "train_data.batch_size=2", "optimizer.lr=1e-4,1e-2"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    sweep = cli.ok("train", "-m", *train, *ddp, name="sweep")
    assert statuses(sweep.folder) == ["finished", "finished"]
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1"]
    for number, lr in enumerate((1e-4, 1e-2)):
        run = json.loads((sweep.folder / str(number) / "provenance.json").read_text())
        assert run["device"]["processes"] == 2
        assert run["config"]["optimizer"]["lr"] == lr
        # A batch is shared among the processes.
        single = [*options, *TRAIN, *HELD_OUT, "train_data.batch_size=2", f"optimizer.lr={lr}"]
        one = cli.ok("train", *single, name=f"one_{number}")
        several = json.loads((sweep.folder / str(number) / "metrics.json").read_text())
        assert several["mean"] == pytest.approx(one.metrics["mean"], abs=1e-4)


def test_a_search_without_held_out_categories_is_refused(cli: Cli, options: list[str]) -> None:
    search = ["-m", *options, *TRAIN, "+sweep=optuna"]
    message = cli.error("train", *search, name="sweep")
    assert "val_categories=[...]" in message
    assert "select=METRIC" in cli.error("train", *search, "val_categories=[candle]", "select=last", name="sweep")
    assert "src.train" in cli.error("eval", *search, *HELD_OUT, name="sweep")
    assert "train_data" in cli.error("train", "-m", *options, *HELD_OUT, "+sweep=optuna", name="sweep")
    assert not (cli.folder / "sweep").exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["seed=1,2", "optimizer.lr=abc"], "optimizer.lr must be a number, but got abc"),
        (["seed=1,2", "+foo=3"], "unknown configuration key 'foo'"),
        (
            ["optimizer.lr=abc,def"],
            "none of the 2 trials can run; the first one: optimizer.lr must be a number, but got abc",
        ),
        (["+sweep=optuna", *HELD_OUT, "optimizer.lr=wide"], "optimizer.lr must be a number, but got wide"),
        (["+sweep=optuna", *HELD_OUT, "trainer.devices=x"], "trainer.devices must be how many"),
    ],
)
def test_a_sweep_of_which_no_trial_can_run_is_refused_once(cli: Cli, overrides: list[str], line: str) -> None:
    assert cli.error("train", "-m", "trainer=cpu", *TRAIN, *overrides, name="sweep").startswith(line)
    assert not (cli.folder / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_of_which_one_trial_can_run_starts(cli: Cli, options: list[str]) -> None:
    done = cli("eval", "-m", *options, "+exp=sdp_mvtec", "model.smoothing_sigma=wide,4", name="sweep")
    assert [line.partition("): ")[2] for line in errors(done)] == [
        "model.smoothing_sigma must be a number, but got wide"
    ]
    assert statuses(done.folder) == ["failed", "finished"]


@pytest.mark.slow
def test_what_a_sweep_gives_is_not_missed(cli: Cli, options: list[str], data: Path) -> None:
    roots = f"test_data.root={data / 'mvtec'},/nowhere"  # without a value where none is swept
    done = cli("predict", "-m", *options, roots, name="sweep")
    assert statuses(done.folder) == ["finished", "failed"]


@pytest.mark.slow
def test_a_search_maximises_the_held_out_metric(cli: Cli, options: list[str]) -> None:
    search = [*options, *TRAIN, *HELD_OUT, "+sweep=optuna", "hydra.sweeper.n_trials=3"]
    done = cli.ok("train", "-m", *search, name="sweep")
    trials = list(read_trials(done.folder))
    assert len({trial.overrides[0] for trial in trials}) == 3
    best = max(trials, key=lambda trial: trial.objective or 0)
    found = (done.folder / "optimization_results.yaml").read_text()
    assert f"best_value: {best.objective}" in found
    assert not list(done.folder.glob("*/metrics.json"))
    longer = cli.ok("train", "-m", *search[:-1], "hydra.sweeper.n_trials=4", name="sweep")
    assert [trial.objective for trial in read_trials(longer.folder)][:3] == [trial.objective for trial in trials]
    assert len(list(read_trials(longer.folder))) == 4


@pytest.mark.slow
def test_a_search_that_is_repeated_keeps_the_history_of_its_later_trials(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = [*options, *TRAIN, *HELD_OUT, "+sweep=optuna", "hydra.sweeper.n_trials=4"]
    search += ["hydra.sweeper.sampler.n_startup_trials=1"]  # from the second on, trials depend on earlier ones
    fit = Trainer.fit

    def second_fails(self: Trainer, *args: Any, **kwargs: Any) -> None:
        if HydraConfig.get().job.num in failing:
            raise ZeroDivisionError("out of memory, say")
        fit(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", second_fails)
    failing = [1, 3]
    first = list(read_trials(cli("train", "-m", *search, name="sweep").folder))
    assert [trial.status for trial in first] == ["finished", "failed", "finished", "failed"]
    failing.clear()
    done = cli("train", "-m", *search, name="sweep")
    again = list(read_trials(done.folder))
    assert [trial.status for trial in again] == ["finished", "failed", "finished", "finished"]
    assert [trial.overrides for trial in again] == [trial.overrides for trial in first]
    assert "trial 1 stays failed" in done.out


@pytest.mark.slow
def test_trials_in_parallel_give_what_they_give_one_by_one(cli: Cli, options: list[str]) -> None:
    train = ["train", "-m", *options, *TRAIN, "seed=1,2", "model.smoothing_sigma=8,-1"]
    one_by_one, parallel = (
        cli(*train, *more, name=name)
        for name, more in (("one", []), ("two", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]))
    )
    assert one_by_one.code == parallel.code == 1
    assert len(errors(one_by_one)) == 2
    strip = [line.replace(str(parallel.folder), str(one_by_one.folder)) for line in errors(parallel)]
    assert strip == errors(one_by_one)
    for number in (0, 2):
        one, two = (json.loads((s.folder / str(number) / "metrics.json").read_text()) for s in (one_by_one, parallel))
        assert one["mean"] == pytest.approx(two["mean"], abs=1e-6)


def models_before_each(cli: Cli, monkeypatch: pytest.MonkeyPatch, *command: str) -> list[int]:
    """How many models are alive when the model of each trial is built."""
    alive: weakref.WeakSet[Backbone] = weakref.WeakSet()
    counts: list[int] = []
    build = Backbone.__init__

    def counted(self: Backbone, *args: Any, **kwargs: Any) -> None:
        counts.append(len(alive))
        build(self, *args, **kwargs)
        alive.add(self)

    monkeypatch.setattr(Backbone, "__init__", counted)
    cli(*command, name="sweep")
    return counts


@pytest.mark.slow
def test_a_sweep_holds_one_model_at_a_time(cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # The middle one fails after its model was built.
    trials = "model.feature_layers=[12],[99],[11]"
    assert models_before_each(cli, monkeypatch, "eval", "-m", *options, "+exp=sdp_mvtec", trials) == [0, 0, 0]


@pytest.mark.slow
def test_a_sweep_of_trainings_holds_one_model_at_a_time(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = ["optimizer.lr=1e-4,1e-3", "callbacks=default", "trainer.enable_progress_bar=true"]
    train = [one for one in (*options, *TRAIN, *HELD_OUT, *trials) if one != "~callbacks.progress"]
    assert models_before_each(cli, monkeypatch, "train", "-m", *train) == [0, 0]
