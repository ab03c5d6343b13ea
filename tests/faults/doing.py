"""`python -m experiments.faults` with faults added that can't be survived: they show that it can tell."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from experiments.faults.__main__ import main
from experiments.faults.commands import EVAL
from experiments.faults.ends import killed
from experiments.faults.faults import FAULTS
from experiments.faults.harness import Fault, Place
from experiments.faults.meddling import at_write, from_the_start, kill, sleep


def other_figures(place: Place) -> None:
    done = place.ok("eval", *EVAL, "model.smoothing_sigma=2")
    place.same(done, place.undisturbed("eval", *EVAL))


def is_accepted(place: Place) -> None:
    place.refused("eval", *EVAL)


def hangs(place: Place) -> None:
    place.start("eval", *EVAL, meddle=[from_the_start(sleep(60))]).wait(seconds=0.5)


def has_a_traceback(place: Place) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("what nobody expects")

    place.run("eval", *EVAL, meddle=[fail])


def writes_outside(place: Place) -> None:
    place.run("eval", "+no=key", meddle=[lambda folder: (place.tiny.root / "outside").write_text("x") and None])


def changes_what_is_not_its_own(place: Place) -> None:
    image = next(place.mvtec.rglob("*.png"))
    place.run("eval", "+no=key", meddle=[lambda folder: image.write_bytes(b"x") and None])


def leaves_a_process(place: Place) -> None:
    def fork(_: Path) -> None:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)

    place.run("eval", "+no=key", meddle=[fork])


def is_not_disturbed(place: Place) -> None:
    killed(place, "eval", *EVAL, meddle=at_write(10_000, kill))


def is_wrong_itself(place: Place) -> None:
    raise KeyError("a mistake in a fault")


WRONG = [
    other_figures,
    is_accepted,
    hangs,
    has_a_traceback,
    writes_outside,
    changes_what_is_not_its_own,
    leaves_a_process,
    is_not_disturbed,
    is_wrong_itself,
]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], [*FAULTS, *(Fault(check.__name__, 0, check) for check in WRONG)]))
