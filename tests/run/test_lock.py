"""One run in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.errors import UserError
from src.run.lock import locked
from src.run.merge import main as merge
from tests.cli import Cli, golden_backbone
from tests.golden_reference import ROOT, Golden

HOLD = "import sys, time, pathlib, src.run.lock as l\nwith l.locked(pathlib.Path(sys.argv[1])):\n"
HOLD += " print('in', flush=True)\n"


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder, with a child that outlives it."""
    code = f"{HOLD} import os\n os.fork()\n time.sleep(60)"
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert held.stdout is not None
    assert held.stdout.readline() == "in\n"
    return held


@pytest.fixture
def options(golden_a: Golden, tmp_path: Path) -> list[str]:
    data = golden_a.write_mvtec(tmp_path / "mvtec").parent
    quick = ["prompts.templates=['a photo of a {}.']", "model.representative=mean", "~logger"]
    return [*golden_backbone(golden_a), f"paths.data_dir={data}", "+exp=sdp_mvtec", *quick]


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_told_who_has_it(cli: Cli, options: list[str], tmp_path: Path) -> None:
    held = hold(tmp_path / "run")
    try:
        before = {path.name for path in (tmp_path / "run").iterdir()}
        for message in (cli.error("eval", *options), cli.error("eval", "-m", *options, "seed=1,2")):
            assert f"{tmp_path / 'run'} is in use by process {held.pid} on {socket.gethostname()} since 20" in message
            assert "paths.output_dir" in message
        assert {path.name for path in (tmp_path / "run").iterdir()} == before
        os.kill(held.pid, signal.SIGKILL)
        held.wait()
        cli.ok("eval", *options)
    finally:
        os.killpg(held.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_folder_is_free_when_a_run_or_a_sweep_has_ended(cli: Cli, options: list[str], tmp_path: Path) -> None:
    cli.error("eval", *options, "test_data.categories=[none]")
    cli.ok("eval", *options)
    assert cli("eval", "-m", *options, "test_data.categories=[none]", "seed=1,2", name="sweep").code == 1
    for folder in (tmp_path / "run", tmp_path / "sweep", tmp_path / "sweep" / "0"):
        with locked(folder):
            pass


@pytest.mark.slow
def test_joined_parts_go_to_a_folder_that_nobody_writes_to(
    cli: Cli,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [cli.ok("eval", *options, "test_data.batch_size=1", f"test_data.shard={n}/2", name=n) for n in "12"]
    monkeypatch.setattr(sys, "argv", ["merge", *(str(part.folder) for part in parts), "--out", str(tmp_path / "out")])
    with locked(tmp_path / "out"):
        with pytest.raises(SystemExit, match="1"):
            merge()
        assert "is in use by process" in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("[!.]*"))
    with pytest.raises(SystemExit, match="0"):
        merge()


def test_of_several_processes_the_first_has_the_lock(
    cli: Cli, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with locked(tmp_path / "run"):
        assert "is in use" not in cli("eval", *options, "test_data.categories=[none]").err


def test_a_disk_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="knows no locks"), locked(tmp_path):
        pass
    monkeypatch.undo()
    with locked(tmp_path):
        (tmp_path / ".lock.json").write_text("{")
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path):
            pass
