"""What must not change figures: caches, batches, own code; and figures that are none."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.faults.commands import CACHED, EVAL, TRAIN, UNCACHED
from experiments.faults.ends import killed
from experiments.faults.harness import Fault, Place, expect
from experiments.faults.meddling import at_write, kill
from src.clip.backbone import Backbone
from src.models.sdp_plus import SDPPlus

OWN = """
from src.models.sdp import SDP

class Own(SDP):
    def features(self, images):
        return super().features({change})
"""
OWN_MODEL = ("model._target_=own_package.method.Own", "test_data.batch_size=2")


def own_code(place: Place, change: str) -> Path:
    """Write a package with a method that sees images in its own way."""
    path = place.root / "package" / "own_package" / "method.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").write_text("")
    path.write_text(OWN.format(change=change))
    return path.parents[1]


def importable(package: Path) -> Callable[[Path], None]:
    """As with PYTHONPATH."""
    import sys

    return lambda _: sys.path.insert(0, str(package))


def figures(place: Place, package: Path, cache: str, to: str) -> bytes:
    """The metrics of one's own method."""
    return (
        place.ok("eval", *OWN_MODEL, cache, to=to, meddle=[importable(package)]).folder / "metrics.json"
    ).read_bytes()


def own_method_after_the_projects(place: Place) -> None:
    """A subclass with features of its own is not served those of its base class."""
    place.ok("eval", *EVAL, CACHED, to="base")
    package = own_code(place, "images.flip(-1)")
    plain = figures(place, package, UNCACHED, "plain")
    expect(plain != (place.root / "base" / "metrics.json").read_bytes(), "the own method is the base class")
    expect(figures(place, package, CACHED, "cached") == plain, "the features of the base class were served")


def own_method_edited(place: Place) -> None:
    """After an edit of one's own method the features of the old code are not served."""
    package = own_code(place, "images.flip(-1)")
    figures(place, package, CACHED, "before")
    package = own_code(place, "images.flip(-2)")
    plain = figures(place, package, UNCACHED, "plain")
    expect(figures(place, package, CACHED, "cached") == plain, "the features of the old code were served")


def own_helper_edited(place: Place) -> None:
    """After an edit of another file of the package the features of the old code are not served."""
    package = own_code(place, "__import__('own_package.helper').helper.change(images)")
    helper = package / "own_package" / "helper.py"
    helper.write_text("def change(images):\n    return images.flip(-1)\n")
    figures(place, package, CACHED, "before")
    helper.write_text("def change(images):\n    return images.flip(-2)\n")
    plain = figures(place, package, UNCACHED, "plain")
    expect(figures(place, package, CACHED, "cached") == plain, "the features of the old code were served")


def another_batch_size_before(place: Place, command: str, options: tuple[str, ...], size: int) -> None:
    """The cache was filled by batches of another size."""
    place.ok(command, *options, CACHED, f"test_data.batch_size={size}", to="before")
    place.same(place.ok(command, *options, CACHED), place.undisturbed(command, *options))


def part_of_the_data_before(place: Place, known: str) -> None:
    """The cache holds the images and sentences of a part of the data."""
    options = [*EVAL, "test_data.batch_size=4"]
    place.ok("eval", *options, CACHED, f"test_data.categories=[{known}]", to="before")
    place.same(place.ok("eval", *options, CACHED), place.undisturbed("eval", *options))


def cache_without_a_part(place: Place, kind: str, every: int) -> None:
    """Some entries of the cache have been removed."""
    place.ok("eval", *EVAL, CACHED, to="before")
    for path in sorted((place.root / "cache" / kind).rglob("*.safetensors"))[::every]:
        path.unlink()
    place.same(place.ok("eval", *EVAL, CACHED), place.undisturbed("eval", *EVAL))


def killed_while_the_cache_is_filled(place: Place, count: int) -> None:
    """Kill -9 while features are computed: the same command finds some of them, and gives the same figures."""
    killed(place, "train", *TRAIN, meddle=at_write(count, kill, below="../cache"))
    place.goes_on("train", *TRAIN)


def cached_or_not(place: Place) -> None:
    """A cold cache, a warm one, none."""
    reference = place.undisturbed("eval", *EVAL, UNCACHED)
    for name in ("cold", "warm"):
        place.same(place.ok("eval", *EVAL, CACHED, to=name), reference)


def reproduced_after_another_batch_size(place: Place) -> None:
    """A run that was served by a cache of other batches is repeated with an empty one, exactly."""
    place.ok("eval", *EVAL, CACHED, "test_data.batch_size=3", to="before")
    place.ok("eval", *EVAL, CACHED, "test_data.batch_size=4")
    done = place.ok("reproduce", str(place.root / "run"))
    expect("equal exactly" in done.out, done.out.strip().splitlines()[-1])


def loss_not_finite(place: Place, overrides: tuple[str, ...]) -> None:
    """Training leaves the numbers: the run stops, and nothing that is not finite is written as weights."""
    line = place.refused("train", *TRAIN, *overrides, word="finite")
    expect(
        any(word in line for word in ("step", "epoch", "weights", "optimizer.lr")), f"it does not tell where: {line}"
    )
    _all_finite(place)


def loss_of_nan_later(place: Place) -> None:
    """The loss of the second epoch is NaN: the first one's checkpoint is named, and is the way on."""

    def meddle(_: Path) -> None:
        plain, calls = SDPPlus.loss, []

        def disturbed(self: SDPPlus, *arguments: torch.Tensor) -> dict[str, torch.Tensor]:
            losses = plain(self, *arguments)  # type: ignore[arg-type]
            calls.append(1)
            return {name: loss * torch.nan for name, loss in losses.items()} if len(calls) == 4 else losses

        SDPPlus.loss = disturbed  # type: ignore[assignment,method-assign]

    place.refused("train", *TRAIN, word="last.ckpt", meddle=[meddle])
    _all_finite(place)
    place.goes_on("train", *TRAIN)


def one_model_at_a_time(place: Place) -> None:
    """A sweep keeps no model of an earlier trial."""

    def meddle(_: Path) -> None:
        plain, living = Backbone.__init__, weakref.WeakSet()

        def counted(self: Backbone, *arguments: object, **options: object) -> None:
            if len(living) > 1:
                raise RuntimeError(f"{len(living)} models are kept")
            plain(self, *arguments, **options)  # type: ignore[arg-type]
            living.add(self)

        Backbone.__init__ = counted  # type: ignore[assignment,method-assign]

    place.ok("eval", "-m", *EVAL, "model.smoothing_sigma=1,2,3,4,5", meddle=[meddle])


def _all_finite(place: Place) -> None:
    folder = place.root / "run"
    for path in folder.rglob("*.safetensors"):
        expect(all(one.isfinite().all() for one in load_file(path).values()), f"{path.name} is not finite")
    for path in folder.rglob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        expect(all(one.isfinite().all() for one in state.values()), f"{path.name} is not finite")
    expect(not (folder / "metrics.json").exists(), "there are figures")


SGD = "optimizer._target_=torch.optim.SGD"
FAULTS = [
    Fault("own_method_after_the_projects", 1, own_method_after_the_projects),
    Fault("own_method_edited", 1, own_method_edited),
    Fault("own_helper_edited", 1, own_helper_edited),
    *(
        Fault(
            f"batches_of_{size}_before_in_eval",
            2,
            partial(another_batch_size_before, command="eval", options=(*EVAL, "test_data.batch_size=4"), size=size),
        )
        for size in (1, 3)
    ),
    Fault(
        "batches_of_3_before_in_train", 2, partial(another_batch_size_before, command="train", options=TRAIN, size=3)
    ),
    *(Fault(f"{known}_before", 2, partial(part_of_the_data_before, known=known)) for known in ("candle", "pcb1")),
    *(
        Fault(f"{kind}_cache_without_each_{every}", 2, partial(cache_without_a_part, kind=kind, every=every))
        for kind in ("features", "text")
        for every in (2, 3)
    ),
    *(
        Fault(f"killed_at_write_{count}_of_the_cache", 2, partial(killed_while_the_cache_is_filled, count=count))
        for count in (4, 14, 26)
    ),
    Fault("cached_or_not", 2, cached_or_not),
    Fault("reproduced_after_another_batch_size", 2, reproduced_after_another_batch_size),
    Fault("loss_not_finite", 3, partial(loss_not_finite, overrides=(SGD, "optimizer.lr=1e38"))),
    Fault(
        "weights_not_finite_after_the_last_step",
        3,
        partial(
            loss_not_finite, overrides=(SGD, "optimizer.lr=1e38", "trainer.max_epochs=1", "train_data.batch_size=8")
        ),
    ),
    Fault(
        "infinite_learning_rate",
        3,
        partial(loss_not_finite, overrides=("optimizer.lr=inf", "trainer.max_epochs=1", "train_data.batch_size=8")),
    ),
    Fault("loss_of_nan_later", 3, loss_of_nan_later),
    Fault("one_model_at_a_time", 12, one_model_at_a_time),
]
