"""Runs that end before their end: killed, told to stop, or beside another run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

from experiments.faults.commands import EVAL, SWEEP, TRAIN, UNCACHED, predict
from experiments.faults.harness import Done, FailedError, Fault, NotHereError, Place, expect, is_refused
from experiments.faults.meddling import (
    Meddling,
    at_scores,
    at_step,
    at_write,
    from_the_start,
    kill,
    limit_files,
    send,
    sleep,
    when_written,
)

KILLED, TERMINATED, INTERRUPTED = 137, 143, 130


def killed(place: Place, command: str, *overrides: str, meddle: Meddling, to: str = "run") -> None:
    """Run a command that is killed on its way."""
    done = place.run(command, *overrides, meddle=[meddle], to=to)
    expect(done.code == KILLED, f"it was not killed, but ended with {done.code}")


def killed_at_write(place: Place, part: float, command: str, overrides: tuple[str, ...]) -> None:
    """Kill -9 at a part of the files that a run writes; the same command goes on."""
    killed(place, command, *overrides, meddle=at_write(place.write(part, command, *overrides), kill))
    place.goes_on(command, *overrides)


def killed_at_step(place: Place, step: int) -> None:
    """Kill -9 before a training step."""
    killed(place, "train", *TRAIN, meddle=at_step(step, kill))
    done = place.goes_on("train", *TRAIN)
    _kept_nothing_in_tmp(place)
    expect(len(done.provenance["resumed"]) == 1, "provenance does not say that it was resumed")


def killed_three_times(place: Place) -> None:
    """A run that is killed again and again comes to its end."""
    for step in (3, 2, 2):
        killed(place, "train", *TRAIN, meddle=at_step(step, kill))
    place.goes_on("train", *TRAIN)


def killed_while_the_checkpoint_is_written(place: Place) -> None:
    """The second epoch's checkpoint is cut in the middle: the first one's is still there."""
    killed_or_cut = place.run("train", *TRAIN, meddle=[at_step(3, limit_files(20_000, deadly=True))])
    expect(killed_or_cut.code == 128 + signal.SIGXFSZ, f"it was not killed, but ended with {killed_or_cut.code}")
    done = place.goes_on("train", *TRAIN)
    expect(len(done.provenance["resumed"]) == 1, "provenance does not say that it was resumed")


def killed_between_disks(place: Place) -> None:
    """Killed while a checkpoint comes to its place from the folder for temporary files, which is on another disk."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == place.root.stat().st_dev:
        raise NotHereError("there is no second disk at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=other))
    (place.root / "tmp").rmdir()
    (place.root / "tmp").symlink_to(folder)
    arm = when_written("last.ckpt", limit_files(20_000, deadly=True))
    try:
        done = place.run("train", *TRAIN, meddle=[at_step(3, lambda: arm(place.root / "run"))])
        expect(done.code == 128 + signal.SIGXFSZ, f"it was not killed, but ended with {done.code}")
        done = place.goes_on("train", *TRAIN)
        expect(len(done.provenance["resumed"]) == 1, "provenance does not say that it was resumed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def killed_as_the_checkpoint_takes_its_place(place: Place) -> None:
    """Kill -9 between the writing of a checkpoint and its renaming."""
    killed(place, "train", *TRAIN, meddle=when_written("last.ckpt", kill))
    place.goes_on("train", *TRAIN)


def killed_before_it_is_finished(place: Place) -> None:
    """Kill -9 when the metrics are there, but not yet the mark that the run is finished."""
    killed(place, "train", *TRAIN, meddle=when_written("metrics.json", kill))
    place.goes_on("train", *TRAIN)


def killed_sweep(place: Place) -> None:
    """Kill -9 in the second of three trials; the same sweep does what is left."""
    killed(place, "eval", *SWEEP, meddle=at_scores(5, kill))
    first = (place.root / "run" / "0" / "provenance.json").read_bytes()
    done = place.ok("eval", *SWEEP)
    expect((done.folder / "0" / "provenance.json").read_bytes() == first, "a finished trial was run again")
    _trials_are_whole(place, done)


def killed_selection(place: Place) -> None:
    """Kill -9 in a training that selects its epoch on held-out categories."""
    held_out = [one for one in TRAIN if not one.startswith("train_data.categories")]
    selects = [*held_out, "val_categories=[candle]", "select=pixel_AP", "allow_leakage=true"]
    killed(place, "train", *selects, meddle=at_step(5, kill))
    place.goes_on("train", *selects)


def killed_drawing(place: Place) -> None:
    """Twice killed while the demo data are drawn: at most the last one's folder is left."""
    demo = ["+exp=sdp_demo", f"test_data.root={place.root / 'beside_demo'}"]
    for _ in range(3):
        killed(place, "eval", *demo, meddle=at_write(6, kill, below="../beside_demo"))
    left = [path.name for path in (place.root / "beside_demo").iterdir() if path.is_dir()]
    expect(len(left) <= 1, f"{len(left)} folders of killed drawings are left: {', '.join(left)}")


def csv_goes_on(place: Place) -> None:
    """A resumed run writes to the log of losses that it has begun, all epochs in one."""
    killed(place, "train", *TRAIN, meddle=at_step(5, kill))
    done = place.goes_on("train", *TRAIN)
    logs = sorted(done.folder.rglob("metrics.csv"))
    expect(len(logs) == 1, f"there are {len(logs)} logs of losses")
    epochs = [line for line in logs[0].read_text().splitlines()[1:] if line]
    whole = next(place.undisturbed("train", *TRAIN).folder.rglob("metrics.csv")).read_text().splitlines()[1:]
    expect(len(epochs) >= len(whole), f"the log has {len(epochs)} lines, an undisturbed run's has {len(whole)}")


def wandb_goes_on(place: Place) -> None:
    """A resumed run is the same run of W&B, here an offline one."""
    offline = [*TRAIN, "logger=wandb", "logger.wandb.offline=true"]
    killed(place, "train", *offline, meddle=at_step(5, kill))
    done = place.ok("train", *offline)
    place.same(done, place.undisturbed("train", *TRAIN))
    # Of two that begin within a second, the second has a number at its end.
    ids = {path.name.split("-")[3] for path in done.folder.glob("wandb/offline-run-*")}
    expect(len(ids) == 1, f"there are {len(ids)} runs of W&B: {ids}")


def told_to_stop(place: Place, number: int, command: str, overrides: tuple[str, ...], meddle: str, count: int) -> None:
    """SIGTERM or SIGINT: the exit code says so, in one line, and the same command goes on."""
    act = {"step": at_step, "scores": at_scores}[meddle](count, send(number))
    overrides = tuple(predict(place)) if command == "predict" else overrides
    done = place.run(command, *overrides, meddle=[act])
    _has_stopped(done, 128 + number)
    expect(not (done.folder / "metrics.json").exists(), "there are metrics of a run that was told to stop")
    place.goes_on(command, *overrides) if command != "predict" else place.ok(command, *overrides)


def told_to_stop_twice(place: Place) -> None:
    """Whoever is impatient sends it twice."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    _has_stopped(place.run("train", *TRAIN, meddle=[at_step(3, twice)]), TERMINATED)
    place.goes_on("train", *TRAIN)


def told_to_stop_early(place: Place) -> None:
    """SIGTERM while the features are computed, before there is a trainer at work."""
    done = place.run("train", *TRAIN, meddle=[at_write(3, send(signal.SIGTERM), below="../cache/features")])
    _has_stopped(done, TERMINATED)
    place.goes_on("train", *TRAIN)


def told_to_stop_at_a_write(place: Place, part: float) -> None:
    """SIGTERM at a part of the files that a run writes."""
    count = place.write(part, "train", *TRAIN)
    _has_stopped(place.run("train", *TRAIN, meddle=[at_write(count, send(signal.SIGTERM))]), TERMINATED)
    place.goes_on("train", *TRAIN)


def told_to_stop_with_loaders(place: Place) -> None:
    """SIGTERM to a run with processes that load images: they end with it, and nothing of theirs is printed."""
    loading = [*EVAL, "test_data.num_workers=2"]
    done = place.run("eval", *loading, meddle=[at_scores(1, send(signal.SIGTERM))])
    _has_stopped(done, TERMINATED)
    place.same(place.ok("eval", *loading), place.undisturbed("eval", *EVAL))


def killed_with_loaders(place: Place) -> None:
    """Kill -9 to a run with processes that load images: they end with it."""
    killed(place, "eval", *EVAL, "test_data.num_workers=2", meddle=at_scores(1, kill))


def sweep_told_to_stop(place: Place, number: int) -> None:
    """A signal in the second of three trials: the sweep ends, tells which, and goes on by the same command."""
    done = place.run("eval", *SWEEP, meddle=[at_scores(5, send(number))])
    _has_stopped(done, 128 + number)
    expect("1" in " ".join(done.said), f"it does not tell which trial was cut: {done.said}")
    expect(not (done.folder / "2").exists(), "the next trial was started")
    _trials_are_whole(place, place.ok("eval", *SWEEP))


def joblib_workers_end(place: Place) -> None:
    """Kill -9 to a sweep whose trials run side by side: their processes end with it."""
    sweep = ["-m", *EVAL, "model.smoothing_sigma=2,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    run = place.start("eval", *sweep)
    run.until(lambda: len(list((place.root / "run").glob("*/trial.json"))) == 2, "two trials have started")
    time.sleep(2)
    run.signal(signal.SIGKILL)
    run.wait()


def two_runs_in_one_folder(place: Place) -> None:
    """A second run with another seed is refused while the first one is at work, which goes on as if alone."""
    first = place.start("train", *TRAIN, meddle=[at_step(2, sleep(12))])
    first.until((place.root / "run" / "provenance.json").is_file, "the first run has begun")
    second = place.start("train", *TRAIN, "model.smoothing_sigma=2")
    try:
        refused = second.wait()
        is_refused(refused, "run")
    finally:
        done = first.wait()
    expect(done.code == 0, f"the first run ended with {done.code}: {done.said}")
    place.same(done, place.undisturbed("train", *TRAIN))


def the_same_run_twice(place: Place) -> None:
    """The same command while it is at work already is refused, and does not take the first one's work for left over."""
    first = place.start("train", *TRAIN, meddle=[at_step(4, sleep(12))])
    first.until((place.root / "run" / "checkpoints" / "last.ckpt").is_file, "the first run has a checkpoint")
    try:
        place.refused("train", *TRAIN)
    finally:
        done = first.wait()
    expect(done.code == 0, f"the first run ended with {done.code}: {done.said}")
    place.same(done, place.undisturbed("train", *TRAIN))
    expect(not done.provenance["resumed"], "the run has been resumed while it was at work")


def two_started_together(place: Place) -> None:
    """Two runs with different options that start at the same moment: one is refused, one is right."""
    runs = [place.start("eval", *EVAL, f"model.smoothing_sigma={sigma}") for sigma in (2, 8)]
    ended = [run.wait() for run in runs]
    codes = [done.code for done in ended]
    expect(sorted(codes) == [0, 1], f"they ended with {codes}")
    is_refused(ended[codes.index(1)])
    sigma = (2, 8)[codes.index(0)]
    place.same(ended[codes.index(0)], place.undisturbed("eval", *EVAL, f"model.smoothing_sigma={sigma}"))


def two_sweeps_in_one_folder(place: Place) -> None:
    """The same sweep started twice: the second one is refused, and no trial is run twice at once."""
    first = place.start("eval", *SWEEP, meddle=[at_scores(2, sleep(10))])
    first.until((place.root / "run" / "0" / "provenance.json").is_file, "the first sweep has begun")
    try:
        second = place.run("eval", *SWEEP)
        expect(second.code == 1, f"the second sweep ended with {second.code}")
    finally:
        done = first.wait()
    expect(done.code == 0, f"the first sweep ended with {done.code}: {done.said}")
    _trials_are_whole(place, done)


def a_lock_dies_with_its_process(place: Place) -> None:
    """Whatever a killed run leaves keeps nobody out."""
    killed(place, "eval", *EVAL, meddle=at_scores(1, kill))
    place.goes_on("eval", *EVAL)


def two_runs_share_a_cache(place: Place) -> None:
    """Two runs at once over one cold cache."""
    runs = [place.start("train", *TRAIN, to=name) for name in ("beside_a", "beside_b")]
    for run in runs:
        done = run.wait()
        expect(done.code == 0, f"it ended with {done.code}: {done.said}")
        place.same(done, place.undisturbed("train", *TRAIN))


def another_run_after_a_kill(place: Place) -> None:
    """Other options do not resume a killed run, and leave it as it is."""
    killed(place, "train", *TRAIN, UNCACHED, meddle=at_step(4, kill))
    place.refused("train", *TRAIN, UNCACHED, "seed=7", word="seed")
    place.goes_on("train", *TRAIN, UNCACHED)


def merge_killed(place: Place) -> None:
    """Kill -9 while parts are joined; the same command joins them."""
    folders = [place.ok("eval", *EVAL, f"test_data.shard={n}/2", to=f"part{n}").folder for n in (1, 2)]
    arguments = [*map(str, folders), "--out", str(place.root / "merged")]
    killed(place, "merge", *arguments, meddle=at_write(3, kill, below="../merged"))
    place.ok("merge", *arguments)
    place.same(Done(0, "", "", place.root / "merged"), place.undisturbed("eval", *EVAL))


def leftovers_are_removed(place: Place) -> None:
    """What a killed run has half written is not there for good: the run that goes on removes it."""
    killed(place, "eval", *EVAL, meddle=when_written("metrics.json", kill))
    done = place.goes_on("eval", *EVAL)
    left = [path.name for path in done.folder.rglob("*.tmp")]
    expect(not left, f"left for good: {left}")


def ended_while_the_page_is_written(place: Place, meddle: Meddling, code: int) -> None:
    """A run ends within its page: no half page, and the same command goes on and leaves nothing of the first."""
    done = place.run("eval", *EVAL, meddle=[meddle])
    expect(done.code == code, f"expected exit code {code}, but it is {done.code}")
    expect(not (done.folder / "report.html").exists(), "half a page is there")
    done = place.goes_on("eval", *EVAL)
    page = (done.folder / "report.html").read_text()
    expect(page.rstrip().endswith("</html>"), "the page has no end")
    left = [path.name for path in done.folder.rglob("*.tmp")]
    expect(not left, f"left for good: {left}")


def terminal_closed(place: Place) -> None:
    """SIGHUP ends a run as ever; the same command goes on."""
    done = place.run("train", *TRAIN, meddle=[at_step(4, send(signal.SIGHUP))])
    expect(done.code == 128 + signal.SIGHUP, f"it ended with {done.code}")
    place.goes_on("train", *TRAIN)


def a_loader_is_killed(place: Place) -> None:
    """The system ends a process that loads images, as when there is no memory: one line."""

    def kill_one() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        time.sleep(0.5)

    place.refused("eval", *EVAL, "test_data.num_workers=2", meddle=[at_scores(1, kill_one)])
    place.goes_on("eval", *EVAL)


def output_closed(place: Place) -> None:
    """Nobody reads the output any more, as with `| head -1`."""

    def close(_: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)

    done = place.run("train", *TRAIN, meddle=[close])
    expect(done.code != 0 and len(done.said) == 1, f"exit code {done.code}, {len(done.said)} lines: {done.said[-1:]}")


def output_on_a_full_disk(place: Place) -> None:
    """The file that the output goes to can't grow."""
    if not Path("/dev/full").exists():
        raise NotHereError("there is no /dev/full")
    done = place.run("eval", *EVAL, meddle=[lambda _: os.dup2(os.open("/dev/full", os.O_WRONLY), 1) and None])
    expect(done.code == 1 and len(done.said) == 1, f"exit code {done.code}, {len(done.said)} lines: {done.said[-1:]}")
    place.goes_on("eval", *EVAL)


def _has_stopped(done: Done, code: int) -> None:
    expect(done.code == code, f"expected exit code {code}, but it is {done.code}: {done.said[-1:]}")
    expect(len(done.said) == 1, f"expected one line, but got {len(done.said)}: {' / '.join(done.said)[:200]}")


def _trials_are_whole(place: Place, sweep: Done) -> None:
    for number, sigma in enumerate((2, 4, 8)):
        folder = sweep.folder / str(number)
        trial = json.loads((folder / "trial.json").read_text())
        expect(trial["status"] == "finished", f"trial {number} is {trial['status']}")
        place.same(Done(0, "", "", folder), place.undisturbed("eval", *EVAL, f"model.smoothing_sigma={sigma}"))


def _kept_nothing_in_tmp(place: Place) -> None:
    left = [path.name for path in (place.root / "tmp").iterdir()]
    if left:
        raise FailedError(f"{len(left)} files or folders are left in the temporary folder: {', '.join(left[:3])}")


TERM, INT = signal.SIGTERM, signal.SIGINT
FAULTS = [
    *(
        Fault(
            f"train_killed_at_{int(100 * part)}_percent_of_its_writes",
            10,
            partial(killed_at_write, part=part, command="train", overrides=TRAIN),
        )
        for part in (0.05, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1.0)
    ),
    *(
        Fault(
            f"eval_killed_at_{int(100 * part)}_percent_of_its_writes",
            10,
            partial(killed_at_write, part=part, command="eval", overrides=EVAL),
        )
        for part in (0.3, 0.8)
    ),
    *(Fault(f"train_killed_at_step_{step}", 10, partial(killed_at_step, step=step)) for step in (1, 4)),
    Fault("killed_three_times", 10, killed_three_times),
    Fault("killed_while_the_checkpoint_is_written", 10, killed_while_the_checkpoint_is_written),
    Fault("killed_between_disks", 10, killed_between_disks),
    Fault("killed_as_the_checkpoint_takes_its_place", 10, killed_as_the_checkpoint_takes_its_place),
    Fault("killed_before_it_is_finished", 10, killed_before_it_is_finished),
    Fault("killed_sweep", 10, killed_sweep),
    Fault("killed_selection", 10, killed_selection),
    Fault("another_run_after_a_kill", 10, another_run_after_a_kill),
    Fault("killed_drawing", 13, killed_drawing),
    Fault("csv_goes_on", 13, csv_goes_on),
    Fault("wandb_goes_on", 13, wandb_goes_on),
    Fault(
        "sigterm_in_train",
        9,
        partial(told_to_stop, number=TERM, command="train", overrides=TRAIN, meddle="step", count=4),
    ),
    Fault(
        "sigint_in_train",
        9,
        partial(told_to_stop, number=INT, command="train", overrides=TRAIN, meddle="step", count=4),
    ),
    Fault(
        "sigterm_in_the_test_after_training",
        9,
        partial(told_to_stop, number=TERM, command="train", overrides=TRAIN, meddle="scores", count=1),
    ),
    Fault(
        "sigterm_in_eval",
        9,
        partial(told_to_stop, number=TERM, command="eval", overrides=EVAL, meddle="scores", count=2),
    ),
    Fault(
        "sigint_in_eval", 9, partial(told_to_stop, number=INT, command="eval", overrides=EVAL, meddle="scores", count=2)
    ),
    Fault(
        "sigterm_in_predict",
        9,
        partial(told_to_stop, number=TERM, command="predict", overrides=(), meddle="scores", count=1),
    ),
    Fault("sigterm_twice", 9, told_to_stop_twice),
    Fault("sigterm_while_features_are_computed", 9, told_to_stop_early),
    *(
        Fault(f"sigterm_at_{int(100 * part)}_percent_of_its_writes", 9, partial(told_to_stop_at_a_write, part=part))
        for part in (0.1, 0.5, 0.9)
    ),
    Fault("sigterm_with_loaders", 9, told_to_stop_with_loaders),
    Fault("killed_with_loaders", 9, killed_with_loaders),
    Fault("sigterm_in_a_sweep", 9, partial(sweep_told_to_stop, number=TERM)),
    Fault("sigint_in_a_sweep", 9, partial(sweep_told_to_stop, number=INT)),
    Fault("joblib_workers_end", 9, joblib_workers_end),
    Fault("two_runs_in_one_folder", 4, two_runs_in_one_folder),
    Fault("the_same_run_twice", 4, the_same_run_twice),
    Fault("two_started_together", 4, two_started_together),
    Fault("two_sweeps_in_one_folder", 4, two_sweeps_in_one_folder),
    Fault("a_lock_dies_with_its_process", 4, a_lock_dies_with_its_process),
    Fault("two_runs_share_a_cache", 4, two_runs_share_a_cache),
    Fault("merge_killed", 10, merge_killed),
    Fault("leftovers_are_removed", 13, leftovers_are_removed),
    *(
        Fault(name, 10, partial(ended_while_the_page_is_written, meddle=meddle, code=code))
        for name, meddle, code in (
            ("killed_while_the_page_is_written", from_the_start(limit_files(2_000_000, deadly=True)), 153),
            ("killed_as_the_page_takes_its_place", when_written("report.html", kill), KILLED),
            ("killed_while_images_pass", at_scores(2, kill), KILLED),
            ("sigterm_while_the_page_is_written", when_written("report.html", send(signal.SIGTERM)), TERMINATED),
        )
    ),
    Fault("terminal_closed", 9, terminal_closed),
    Fault("a_loader_is_killed", 9, a_loader_is_killed),
    Fault("output_closed", 11, output_closed),
    Fault("output_on_a_full_disk", 11, output_on_a_full_disk),
]
