"""Disks that are full, and folders that are none."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from experiments.faults.commands import CACHED, EVAL, SWEEP, TRAIN, predict
from experiments.faults.harness import Done, Fault, Place, expect, is_refused
from experiments.faults.meddling import (
    Meddling,
    at_scores,
    at_step,
    at_write,
    from_the_start,
    full,
    limit_files,
    small_disk,
    when_written,
)


def full_at(place: Place, part: float, command: str, overrides: tuple[str, ...]) -> None:
    """The disk of the results is full from a part of a run's writes on; with room again, the same command goes on."""
    count = place.write(part, command, *overrides)
    done = place.run(command, *overrides, meddle=[at_write(count, full, for_good=True)])
    is_refused(done, "run")
    place.goes_on(command, *overrides)


def full_for(place: Place, command: str, overrides: tuple[str, ...], size: int) -> None:
    """A real disk with room for `size` bytes; what it holds afterwards is resumed elsewhere."""
    done = place.run(command, *overrides, meddle=[small_disk(size)])
    is_refused(done, "run")
    (place.root / "run").rmdir()
    (place.root / "beside_run").rename(place.root / "run")
    place.goes_on(command, *overrides)


def no_file_grows(place: Place, size: int) -> None:
    """No file may grow beyond a size, whoever writes it: the checkpoint and the weights are larger."""
    is_refused(place.run("train", *TRAIN, meddle=[at_step(3, limit_files(size))]), "last.ckpt")
    place.goes_on("train", *TRAIN)


def no_room_for_the_state(place: Place) -> None:
    """The state of a part's metrics, which a library writes, does not fit."""
    part = [*EVAL, "test_data.shard=1/2"]
    done = place.run("eval", *part, meddle=[from_the_start(limit_files(30_000))])
    is_refused(done, "metric_state")
    expect(not (done.folder / "metric_state.safetensors").exists(), "half of the state is there")
    place.ok("eval", *part)


def no_room_for_maps(place: Place) -> None:
    """The disk is full while maps are written."""
    options = [*predict(place), "save_maps=true"]
    is_refused(place.run("predict", *options, meddle=[at_write(8, full, for_good=True)]), "maps")
    done = place.ok("predict", *options)
    expect(len(list(done.folder.rglob("*.npy"))) == 3, "there are not three maps")


def no_room_for_what_shows_it(place: Place, meddle: Meddling, missing: str, overrides: tuple[str, ...] = ()) -> None:
    """There is no room for what only shows the results: one line says so, and the results are there."""
    done = place.ok("eval", *EVAL, *overrides, meddle=[meddle])
    told = [line for line in done.warnings.splitlines() if line.startswith("warning: no ")]
    expect(len(told) == 1 and f"no {missing}: " in told[0], f"expected one line of {missing}, but got {told}")
    beside = done.folder.with_name("beside_run")  # of a small disk
    run = Done(0, "", "", beside if beside.exists() else done.folder)
    place.same(run, place.undisturbed("eval", *EVAL))
    expect(bool(run.provenance["finished"]), "provenance does not say that the run has finished")
    expect(not (run.folder / missing).is_file(), f"half of {missing} is there")
    left = [path.name for path in run.folder.rglob("*.tmp")]
    expect(not left, f"left for good: {left}")


def no_room_for_a_parts_pictures(place: Place) -> None:
    """A part has no room for its pictures, and says so: the whole has no page, and says so."""
    parts = [[*EVAL, f"test_data.shard={n}/2"] for n in (1, 2)]
    done = place.ok("eval", *parts[0], to="part1", meddle=[small_disk(16 << 20)])
    expect("no cases.sqlite: " in done.warnings, f"it said {done.warnings}")
    place.ok("eval", *parts[1], to="part2")
    folders = [str(place.root / name) for name in ("beside_part1", "part2")]
    joined = place.ok("merge", *folders, "--out", str(place.root / "merged"))
    expect("no report.html: " in joined.warnings, f"it said {joined.warnings}")
    place.same(Done(0, "", "", place.root / "merged"), place.undisturbed("eval", *EVAL))


def no_room_for_the_cache(place: Place, count: int) -> None:
    """The disk of the caches is full: the run goes on without."""
    done = place.ok("train", *TRAIN, meddle=[at_write(count, full, below="../cache", for_good=True)])
    place.same(done, place.undisturbed("train", *TRAIN))
    _run_again_in_another_folder(place)


def no_room_for_large_cache_files(place: Place) -> None:
    """Cache files are cut in the middle by a limit of the system, small ones fit."""
    done = place.run("eval", *EVAL, CACHED, meddle=[from_the_start(limit_files(60_000))])
    expect(done.code == 0, f"it ended with {done.code}: {done.said[-1:]}")
    place.same(done, place.undisturbed("eval", *EVAL))


def no_room_in_a_sweep(place: Place) -> None:
    """The disk is full in the second of three trials: each failed one has its line, and the sweep can be repeated."""
    count = place.write(0.5, "eval", *SWEEP)
    done = place.run("eval", *SWEEP, meddle=[at_write(count, full, for_good=True)])
    expect(done.code == 1, f"it ended with {done.code}")
    expect(bool(done.said) and all(line.startswith("error: ") for line in done.said), f"it said {done.said}")
    again = place.ok("eval", *SWEEP)
    for number, sigma in enumerate((2, 4, 8)):
        trial = Done(0, "", "", again.folder / str(number))
        place.same(trial, place.undisturbed("eval", *EVAL, f"model.smoothing_sigma={sigma}"))


def no_room_for_the_sweep(place: Place) -> None:
    """The disk is full when a sweep begins."""
    is_refused(place.run("eval", *SWEEP, meddle=[at_write(1, full, for_good=True)]), "run")
    place.ok("eval", *SWEEP)


def no_room_for_the_table(place: Place) -> None:
    """The disk is full when the table of a sweep is written."""
    place.ok("eval", *SWEEP)
    place.refused("collect", str(place.root / "run"), word="trials.", meddle=[at_write(1, full, for_good=True)])
    place.ok("collect", str(place.root / "run"))


def no_room_for_the_whole(place: Place) -> None:
    """The disk is full when parts are joined; with room again they are."""
    parts = [place.ok("eval", *EVAL, f"test_data.shard={n}/2", to=f"part{n}").folder for n in (1, 2)]
    arguments = [*map(str, parts), "--out", str(place.root / "merged")]
    meddle = [at_write(3, full, below="../merged", for_good=True)]
    place.refused("merge", *arguments, word="merged", meddle=meddle)
    place.ok("merge", *arguments)
    place.same(Done(0, "", "", place.root / "merged"), place.undisturbed("eval", *EVAL))


def no_room_for_the_repetition(place: Place) -> None:
    """The disk is full when a run is repeated: one line, and the first run is as it was."""
    place.ok("eval", *EVAL)
    meddle = [at_write(1, full, below="../run-reproduced-1", for_good=True)]
    place.refused("reproduce", str(place.root / "run"), word="run-reproduced-1", meddle=meddle)
    place.ok("reproduce", str(place.root / "run"))


def no_room_for_the_demo(place: Place) -> None:
    """The disk is full while the demo data are drawn."""
    root = place.root / "beside_demo"
    meddle = [at_write(8, full, below="../beside_demo", for_good=True)]
    place.refused("eval", "+exp=sdp_demo", f"test_data.root={root}", word="demo", meddle=meddle)
    left = [path.name for path in root.iterdir()] if root.is_dir() else []
    expect(len(left) <= 1, f"it has left {left}")


def the_folder_is_a_file(place: Place) -> None:
    """The name of the results' folder is taken by a file."""
    (place.root / "run").write_text("my notes\n")
    place.refused("eval", *EVAL, word="run")
    expect((place.root / "run").read_text() == "my notes\n", "the file was changed")


def the_folder_is_below_a_file(place: Place) -> None:
    """A folder above the results' folder is a file."""
    (place.root / "notes").write_text("my notes\n")
    place.refused("eval", *EVAL, to="notes/run", word="notes")


def the_folder_leads_nowhere(place: Place) -> None:
    """The results' folder is a link to a disk that is not there."""
    (place.root / "run").symlink_to(place.root / "unplugged" / "disk")
    place.refused("eval", *EVAL, word="run")


def the_name_is_too_long(place: Place) -> None:
    """The name of the results' folder is longer than a disk takes."""
    place.refused("eval", *EVAL, to="x" * 300, word="name too long")


def the_cache_is_a_file(place: Place) -> None:
    """The name of the caches' folder is taken by a file: the run goes on without."""
    (place.root / "cache").write_text("my notes\n")
    done = place.ok("train", *TRAIN)
    place.same(done, place.undisturbed("train", *TRAIN))
    expect((place.root / "cache").read_text() == "my notes\n", "the file was changed")


def results_are_folders(place: Place) -> None:
    """Where a result should go there is a folder of that name."""
    for name in ("predictions.csv", "metrics.json"):
        (place.root / "run" / name).mkdir(parents=True)
    place.refused("eval", *EVAL, word="predictions.csv")


def _run_again_in_another_folder(place: Place) -> Path:
    done = place.ok("train", *TRAIN, to="again")
    place.same(done, place.undisturbed("train", *TRAIN))
    return done.folder


FAULTS = [
    *(
        Fault(
            f"disk_full_at_{int(100 * part)}_percent_of_{command}",
            11,
            partial(full_at, part=part, command=command, overrides=overrides),
        )
        for command, overrides, parts in (
            ("train", TRAIN, (0.01, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)),
            ("eval", EVAL, (0.1, 0.5, 0.9)),
        )
        for part in parts
    ),
    Fault("small_disk_in_train", 11, partial(full_for, command="train", overrides=TRAIN, size=40_960)),
    Fault("tiny_disk_in_train", 11, partial(full_for, command="train", overrides=TRAIN, size=8_192)),
    Fault("small_disk_in_eval", 11, partial(full_for, command="eval", overrides=EVAL, size=16_384)),
    Fault("no_file_grows_beyond_20_kB", 11, partial(no_file_grows, size=20_000)),
    Fault("no_room_for_the_state", 11, no_room_for_the_state),
    Fault("no_room_for_maps", 11, no_room_for_maps),
    *(
        Fault(
            f"no_room_for_{name}",
            11,
            partial(no_room_for_what_shows_it, meddle=meddle, missing=missing, overrides=overrides),
        )
        for name, meddle, missing, overrides in (
            ("the_page", from_the_start(limit_files(2_000_000)), "report.html", ()),
            ("the_pictures", at_scores(2, limit_files(120_000)), "report.html", ()),
            ("more_than_the_results", small_disk(16 << 20), "report.html", ()),
            ("the_curves", when_written("curves.json", full), "curves.json", ()),
            ("an_overlay", when_written("004.png", full), "overlays", ("save_overlays=true",)),
        )
    ),
    Fault("no_room_for_a_parts_pictures", 11, no_room_for_a_parts_pictures),
    *(
        Fault(f"no_room_for_the_cache_from_write_{count}", 11, partial(no_room_for_the_cache, count=count))
        for count in (1, 9, 40)
    ),
    Fault("no_room_for_large_cache_files", 11, no_room_for_large_cache_files),
    Fault("no_room_in_a_sweep", 11, no_room_in_a_sweep),
    Fault("no_room_for_the_sweep", 11, no_room_for_the_sweep),
    Fault("no_room_for_the_table", 11, no_room_for_the_table),
    Fault("no_room_for_the_whole", 11, no_room_for_the_whole),
    Fault("no_room_for_the_repetition", 11, no_room_for_the_repetition),
    Fault("no_room_for_the_demo", 11, no_room_for_the_demo),
    Fault("the_folder_is_a_file", 11, the_folder_is_a_file),
    Fault("the_folder_is_below_a_file", 11, the_folder_is_below_a_file),
    Fault("the_folder_leads_nowhere", 11, the_folder_leads_nowhere),
    Fault("the_name_is_too_long", 11, the_name_is_too_long),
    Fault("the_cache_is_a_file", 11, the_cache_is_a_file),
    Fault("results_are_folders", 11, results_are_folders),
]
