"""How runs end: by a signal, a loss that is no number, a full disk, a damaged checkpoint; and how they go on."""

from __future__ import annotations

import csv
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from datamodules.dataset import AnomalyDataset
from src.anomaly_module import AnomalyModule
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus
from src.sweeps.trial import read_trials
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import ROOT, Golden

SGD = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=1e38"]


@pytest.fixture(scope="session")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("endings") / "mvtec").parent


@pytest.fixture
def options(golden_a: Golden, data: Path) -> list[str]:
    few = ["prompts.templates=['a photo of a {}.']", "model.representative=mean", f"paths.data_dir={data}"]
    return [*golden_backbone(golden_a), *few]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a forked process: on some processors other numbers of threads give other last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(options: list[str]) -> list[str]:
    """Training on the three images of one category, one step an epoch."""
    on_pcb = ["data@train_data=mvtec", "train_data.categories=[pcb1]", "train_data.num_workers=0"]
    return [*options, "model=sdp_plus", "test_data.categories=[candle]", *on_pcb, "trainer.max_epochs=4"]


class Ended(NamedTuple):
    """What a process that got a signal left."""

    code: int
    err: str
    folder: Path


def signalled(number: int, when: Callable[[Path], bool], folder: Path, command: str, *overrides: str) -> Ended:
    """Run a command in a process forked from this one, and send it a signal when something is there in its folder."""
    said = folder.with_name(f"{folder.name}.err")
    process = os.fork()
    if process == 0:
        code = 99
        try:
            with said.open("w") as file, Path(os.devnull).open("w") as nothing:
                os.dup2(file.fileno(), 2)
                sys.stderr, sys.stdout = file, nothing
                torch.set_num_threads(1)
                sys.argv = [f"src/{command}.py", *overrides, f"paths.output_dir={folder}"]
                sys.argv += [f"paths.cache_dir={folder.parent / 'cache'}"]
                try:
                    import_module(f"src.{command}").main()
                    code = 0
                except SystemExit as stop:
                    code = int(stop.code or 0)
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while not when(folder):
        assert os.waitpid(process, os.WNOHANG)[0] == 0, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(), folder)


def has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").is_file()


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, a step takes as long as it does on real data."""
    loss, calls = SDPPlus.loss, []

    def slow(self: SDPPlus, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) > 1:
            time.sleep(60)
        return loss(self, *args)

    monkeypatch.setattr(SDPPlus, "loss", slow)


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith(("warning: ", "INFO: "))]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_training_and_the_same_command_goes_on(
    number: int, code: int, cli: Cli, train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        slowly(patch)
        ended = signalled(number, has_checkpoint, tmp_path / "run", "train", *train)
    assert ended.code == code
    assert lines_of(ended.err) == [
        f"stopped by {signal.Signals(number).name}; the same command with paths.output_dir={ended.folder} "
        "goes on from there"
    ]
    assert torch.load(ended.folder / "checkpoints" / "last.ckpt", weights_only=True)["origin"]["epochs"] == 1
    resumed = cli.ok("train", *train)
    assert resumed.metrics == cli.ok("train", *train, name="whole").metrics


@pytest.mark.slow
def test_a_signal_ends_a_sweep(cli: Cli, train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = [*train, "test=false", "trainer.max_epochs=1", "seed=1,2,3"]
    with monkeypatch.context() as patch:
        slowly(patch)
        ended = signalled(
            signal.SIGTERM, lambda folder: (folder / "1" / "csv").exists(), tmp_path / "run", "train", "-m", *sweep
        )
    assert ended.code == 143
    assert "stopped by SIGTERM in trial 1; later trials were not started" in lines_of(ended.err)[-1]
    assert [trial.status for trial in read_trials(ended.folder)] == ["finished", "running"]
    assert [trial.error for trial in read_trials(ended.folder)] == [None, "stopped by SIGTERM"]
    again = cli.ok("train", "-m", *sweep)
    assert "trial 0 is finished already" in again.out
    assert [trial.status for trial in read_trials(ended.folder)] == ["finished"] * 3


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_signal_ends_an_evaluation_and_a_prediction(
    command: str, options: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SDP, "score", lambda *args: time.sleep(60))
    images = [f"test_data.root={data / 'mvtec' / 'candle'}"] if command == "predict" else []
    workers = [option for option in options if "num_workers" not in option] + ["test_data.num_workers=1"]

    def begun(folder: Path) -> bool:
        time.sleep(2.5)
        return (folder / "provenance.json").is_file()

    ended = signalled(signal.SIGTERM, begun, tmp_path / "run", command, *workers, *images)
    assert ended.code == 143
    assert len(lines_of(ended.err)) == 1, ended.err
    assert ended.err.startswith("stopped by SIGTERM")


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_training_that_runs_away_writes_nothing(cli: Cli, train: list[str], epochs: int) -> None:
    message = cli.error("train", *train, *SGD, f"trainer.max_epochs={epochs}")
    assert "not finite" in message
    assert "step 1" in message
    assert "there is no checkpoint yet" in message
    assert not [path for path in (cli.folder / "run").rglob("*") if path.suffix in (".ckpt", ".safetensors")]


def test_a_loss_that_is_no_number_names_step_images_and_checkpoint(
    cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = SDPPlus.loss, []

    def breaks(self: SDPPlus, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        factor = torch.nan if len(calls) == 4 else 1.0
        return {name: value * factor for name, value in loss(self, *args).items()}

    monkeypatch.setattr(SDPPlus, "loss", breaks)
    message = cli.error("train", *train, "train_data.batch_size=2")
    last = cli.folder / "run" / "checkpoints" / "last.ckpt"
    assert "the loss of step 4 is not finite" in message
    assert "pcb1/test/" in message
    assert f"the last good checkpoint is {last}" in message
    assert torch.load(last, weights_only=True)["origin"]["epochs"] == 1


def cut(cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch, epoch: int = 3) -> Path:
    """The folder of a run that stopped in an epoch of training, counted from 1, on one batch an epoch."""
    loss, calls = SDPPlus.loss, []

    def power_cut(self: SDPPlus, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == epoch:
            raise RuntimeError("power cut")
        return loss(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SDPPlus, "loss", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            cli("train", *train)
    return cli.folder / "run"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in a tensor: it can still be loaded
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, garble, lambda path: path.write_text("no checkpoint"), Path.unlink])
def test_a_damaged_checkpoint_makes_way_for_the_one_before(
    damage: Callable[[Path], None], cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cli.ok("train", *train, name="whole")
    last = cut(cli, train, monkeypatch) / "checkpoints" / "last.ckpt"
    damage(last)
    with pytest.warns(UserWarning, match=rf"{last} is damaged: .*the one before it"):
        resumed = cli.ok("train", *train)
    assert resumed.metrics == whole.metrics


def test_where_no_checkpoint_is_whole_the_way_on_is_named(
    cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut(cli, train, monkeypatch)
    for path in (folder / "checkpoints").iterdir():
        truncate(path)
    message = cli.error("train", *train)
    assert f"{folder / 'checkpoints' / 'last.ckpt'} is damaged" in message
    assert "paths.output_dir" in message


@pytest.fixture
def held_out(train: list[str]) -> list[str]:
    """Training of which the best epoch is selected."""
    options = [option for option in train if "categories" not in option]
    return [*options, "val_categories=[candle]", "select=pixel_AP", "allow_leakage=true", "optimizer.lr=3e-2"]


@pytest.mark.slow
def test_a_damaged_best_checkpoint_makes_way_for_the_best_before(
    cli: Cli, held_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.25, 0.5, 0.75, 0.375]

    def log_score(self: AnomalyModule) -> None:
        self.log("val/pixel_AP", scores[self.current_epoch])
        self.val_metrics.reset()

    def power_cut(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(AnomalyModule, "on_validation_epoch_end", log_score)
    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            cli("train", *held_out)
    truncate(cli.folder / "run" / "checkpoints" / "best.ckpt")
    with pytest.warns(UserWarning, match=r"best\.ckpt is damaged"):
        resumed = cli.ok("train", *held_out)
    trained = resumed.provenance["trained_weights"]
    assert (trained["epochs"], trained["score"]) == (2, 0.5)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let writing fail for files above a size in bytes: as on a full disk, the error does not say for which."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
def test_a_full_disk_costs_one_line_and_no_results(cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train = [*train, "trainer.max_epochs=2", "save_maps=true"]
    whole = cli.ok("train", *train, name="whole")
    replace = Path.replace
    for name in (
        "provenance.json",
        "last.ckpt",
        "metrics.csv",
        "*.safetensors",
        "*.npy",
        "predictions.csv",
        "metrics.json",
    ):

        def is_full(self: Path, target: Path, name: str = name) -> Path:
            if target.match(name):
                raise OSError(errno.ENOSPC, "No space left on device")
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", is_full)
            message = cli.error("train", *train)
        assert message.startswith(f"No space left on device: {cli.folder / 'run'}/")
        assert Path(message.partition(": ")[2]).match(name)
    assert cli.ok("train", *train).metrics == whole.metrics


@pytest.mark.slow
def test_a_full_disk_while_a_checkpoint_is_written_keeps_the_one_before(cli: Cli, train: list[str]) -> None:
    whole = cli.ok("train", *train, name="whole")
    last = cli.folder / "run" / "checkpoints" / "last.ckpt"
    save = torch.save

    def fails_in_the_third_epoch(content: dict[str, Any], file: Any) -> None:
        save(content, file)
        if content["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    with full_disk(10**9), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", fails_in_the_third_epoch)
        assert cli.error("train", *train) == f"File too large: {last}"
    assert torch.load(last, weights_only=True)["origin"]["epochs"] == 2
    assert cli.ok("train", *train).metrics == whole.metrics


def losses(run: Finished) -> list[tuple[int, float]]:
    """Step and loss of all epochs, as the one table of the run tells."""
    (path,) = run.folder.rglob("metrics.csv")
    with path.open(newline="") as file:
        return [
            (int(row["step"]), float(row["train/loss_epoch"]))
            for row in csv.DictReader(file)
            if row["train/loss_epoch"]
        ]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_table(cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cli.ok("train", *train, name="whole")
    cut(cli, train, monkeypatch)
    assert losses(cli.ok("train", *train)) == losses(whole)
    assert [step for step, _ in losses(whole)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_run_of_wandb(cli: Cli, train: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    train = [*train, "logger=wandb", "logger.wandb.offline=true"]
    cut(cli, train, monkeypatch)
    cli.ok("train", *train)
    cli.ok("train", *train, name="other")

    def ids(name: str) -> list[str]:
        found = [path.name for path in (cli.folder / name / "wandb").glob("offline-run-*")]
        return re.findall(r"-([0-9a-f]{16})\b", " ".join(found))  # of two within a second, the second is numbered

    assert len(ids("run")) == 2
    assert len(set(ids("run"))) == 1
    assert set(ids("other")).isdisjoint(ids("run"))


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = (
        "import os, signal, sys, src.eval\n"
        f"sys.argv = ['src/eval.py', 'test_data.root=/nowhere', 'paths.output_dir={tmp_path}/run']\n"
        "try:\n    src.eval.main()\n"
        "finally:\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"/nowhere" in done.stderr  # what is heavy has been imported
    assert not [path.name for path in temporary.iterdir() if "wandb" in path.name]


@pytest.mark.slow
def test_a_dead_process_of_loading_is_told_in_one_line(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnomalyDataset, "__getitem__", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    message = cli.error("eval", *options, "test_data.num_workers=1")
    assert "num_workers" in message


def start(command: str, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A command in a process of its own, which others may be started from."""
    arguments = [sys.executable, "-m", f"src.{command}", *overrides, f"paths.output_dir={folder}"]
    arguments.append(f"paths.cache_dir={folder.parent / 'cache'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left_of(folder: Path) -> list[str]:
    """The processes that were started for a folder and are still there. `ps` tells them on every Unix."""
    processes = subprocess.run(["ps", "-A", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True)
    return [line for line in processes.stdout.splitlines() if str(folder) in line]


DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.mark.slow
def test_a_signal_ends_all_processes_of_a_run(train: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = [option for option in train if option != "trainer=cpu"]
    process = start("train", folder, *train, *DDP, "trainer.max_epochs=100000")
    wait_for(lambda: has_checkpoint(folder), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert len(lines_of(err)) == 1, err
    assert err.splitlines()[-1].startswith("stopped by SIGTERM")
    assert left_of(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_trial_end_with_the_sweep(number: int, train: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = [option for option in train if option != "trainer=cpu"]
    process = start("train", folder, "-m", *train, *DDP, "trainer.max_epochs=100000", "seed=1,2")
    wait_for(lambda: has_checkpoint(folder / "0"), process)
    process.send_signal(number)
    process.communicate(timeout=60)
    time.sleep(3)
    assert left_of(folder) == []


@pytest.mark.slow
def test_all_processes_end_at_a_loss_that_is_no_number(train: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = [option for option in train if option != "trainer=cpu"]
    process = start("train", folder, *train, *DDP, *SGD, "train_data.batch_size=2")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1, err
    assert len(lines_of(err)) == 1, err
    line = lines_of(err)[0]
    assert line.startswith("error: ")
    assert "not finite" in line
    assert left_of(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_trials_side_by_side_end_with_the_sweep(number: int, code: int, train: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=100000", "seed=1,2,3"]
    process = start("train", folder, "-m", *train, *joblib)
    wait_for(lambda: all(has_checkpoint(folder / trial) for trial in "01"), process)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode == code
    checkpoints = [folder / trial / "checkpoints" / "last.ckpt" for trial in "01"]
    time.sleep(3)
    before = [path.stat().st_mtime_ns for path in checkpoints]
    time.sleep(2)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    if number == signal.SIGTERM:
        assert process.stderr is not None
        lines = lines_of(process.stderr.read())
        assert len(lines) == 1, lines
        assert "in trial 0 and 1" in lines[0]
