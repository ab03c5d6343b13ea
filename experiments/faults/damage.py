"""Files of the project's own that are not as they were written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open, save_file

from experiments.faults.commands import CACHED, EVAL, SWEEP, TRAIN
from experiments.faults.ends import killed
from experiments.faults.harness import Done, Fault, Place, expect
from experiments.faults.meddling import at_scores, at_step, kill

Damage = Callable[[Path], None]
TRAINED = ("model=sdp_plus", "test_data.categories=[candle]", "test_data.batch_size=2")


def cut(path: Path) -> None:
    """Leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    """Leave nothing of it."""
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    """Put something else of the same size there."""
    path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256 + 1))


def zeroed(path: Path) -> None:
    """What a file system may leave of a file after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def text(content: str) -> Damage:
    """Put a text there."""
    return lambda path: path.write_text(content) and None


def changed(**entries: object) -> Damage:
    """Change entries of a JSON object; dots in their names are written as two underscores."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        for name, value in entries.items():
            *parents, last = name.split("__")
            node = content
            for parent in parents:
                node = node[parent]
            node[last] = value
        path.write_text(json.dumps(content))

    return damage


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


OTHER_JSON = {
    "cut": cut,
    "emptied": emptied,
    "zeroed": zeroed,
    "garbage": garbage,
    "a_list": text("[1, 2, 3]"),
    "null": text("null"),
    "an_empty_object": text("{}"),
    "deep": text("[" * 100_000),
    "nan": text('{"number": NaN}'),
}


def killed_training(place: Place) -> None:
    """A training that was killed in its second of three epochs."""
    killed(place, "train", *TRAIN, meddle=at_step(4, kill))


def finished_sweep(place: Place) -> None:
    """A sweep of three trials."""
    place.ok("eval", *SWEEP)


def killed_sweep(place: Place) -> None:
    """A sweep that was killed in its second of three trials."""
    killed(place, "eval", *SWEEP, meddle=at_scores(5, kill))


def filled_cache(place: Place) -> None:
    """The caches that an evaluation leaves."""
    place.ok("eval", *EVAL, CACHED)


def trained(place: Place) -> None:
    """A finished training."""
    place.ok("train", *TRAIN, "test=false", to="trained")


def finished_evaluation(place: Place) -> None:
    """A finished evaluation."""
    place.ok("eval", *EVAL)


def damaged_checkpoint(place: Place, damage: Damage) -> None:
    """The only checkpoint of a killed run is damaged: one line names it and the way on; a new folder starts anew."""
    place.given(killed_training, "run")
    checkpoints = sorted((place.root / "run").rglob("*.ckpt"))
    for path in checkpoints:
        damage(path)
    place.refused("train", *TRAIN, word="last.ckpt")
    place.goes_on("train", *TRAIN, to="new")


def damaged_newest_checkpoint(place: Place) -> None:
    """The newest checkpoint is damaged; if the one before it is there, it is used."""
    killed(place, "train", *TRAIN, "trainer.max_epochs=4", meddle=at_step(7, kill))
    newest = place.root / "run" / "checkpoints" / "last.ckpt"
    cut(newest)
    if len(list(newest.parent.glob("*.ckpt"))) == 1:
        place.refused("train", *TRAIN, "trainer.max_epochs=4", word="last.ckpt")
    else:
        place.goes_on("train", *TRAIN, "trainer.max_epochs=4")


def checkpoint_bomb(place: Place) -> None:
    """A checkpoint that would run a program is not unpickled, neither to resume nor to test."""
    marker = place.root / "work" / "ran"
    place.given(killed_training, "run")
    for path in (place.root / "run").rglob("*.ckpt"):
        path.write_bytes(pickle.dumps({"state_dict": Bomb(marker)}))
    place.refused("train", *TRAIN, word="last.ckpt")
    bomb = place.root / "bomb.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": Bomb(marker)}, bomb)
    place.refused("eval", *TRAINED, f"ckpt_path={bomb}", word="bomb.ckpt", to="eval")
    place.refused("eval", *EVAL, f"backbone.pretrained={bomb}", word="bomb.ckpt", to="eval")
    expect(not marker.exists(), "the program ran")


def anothers_checkpoint(place: Place) -> None:
    """The checkpoint of a run with other options lies in a killed run's folder: it is refused."""
    place.given(killed_training, "run")
    killed(place, "train", *TRAIN, "optimizer.lr=1e-3", "seed=3", to="other", meddle=at_step(6, kill))
    shutil.copy(place.root / "other" / "checkpoints" / "last.ckpt", place.root / "run" / "checkpoints" / "last.ckpt")
    done = place.run("train", *TRAIN)
    if done.code == 0:
        place.same(done, place.undisturbed("train", *TRAIN))
    else:
        expect(done.code == 1 and len(done.said) == 1, f"exit code {done.code}, {done.said}")


def damaged_provenance(place: Place, damage: Damage) -> None:
    """The provenance of a killed run is damaged: one line names it, and nothing is overwritten."""
    place.given(killed_training, "run")
    path = place.root / "run" / "provenance.json"
    damage(path)
    before = path.read_bytes()
    place.refused("train", *TRAIN, word="provenance.json")
    expect(path.read_bytes() == before, "the damaged file was overwritten")


def damaged_trial(place: Place, damage: Damage) -> None:
    """What a trial has left is damaged: the table and the sweep say which file, in one line."""
    place.given(finished_sweep, "run")
    damage(place.root / "run" / "1" / "trial.json")
    place.refused("collect", str(place.root / "run"), word="trial.json")
    place.refused("eval", *SWEEP, word="trial.json")


def damaged_sweep(place: Place, damage: Damage) -> None:
    """What says which sweep a folder holds is damaged."""
    place.given(killed_sweep, "run")
    damage(place.root / "run" / "sweep.json")
    place.refused("eval", *SWEEP, word="sweep.json")


def damaged_metrics(place: Place, damage: Damage) -> None:
    """The metrics of a trial are damaged: neither the table nor a repetition believes them."""
    place.given(finished_sweep, "run")
    damage(place.root / "run" / "1" / "metrics.json")
    place.refused("collect", str(place.root / "run"), word="metrics.json")
    place.refused("reproduce", str(place.root / "run" / "1"), word="metrics.json")


def damaged_cache(place: Place, kind: str, damage: Damage) -> None:
    """Entries of a cache are damaged: what is damaged is computed anew, and the figures are those of an empty cache."""
    place.given(filled_cache, "cache")
    entries = sorted((place.root / "cache" / kind).rglob("*.safetensors"))
    expect(bool(entries), f"there are no entries of {kind}")
    for path in entries:
        damage(path)
    done = place.ok("eval", *EVAL, CACHED)
    place.same(done, place.undisturbed("eval", *EVAL))
    again = place.ok("eval", *EVAL, CACHED, to="again")
    place.same(again, place.undisturbed("eval", *EVAL))


def swapped_cache(place: Place, kind: str) -> None:
    """Each entry of a cache has the content of another one of its shape."""
    place.given(filled_cache, "cache")
    entries = sorted((place.root / "cache" / kind).rglob("*.safetensors"))
    by_size: dict[int, list[Path]] = {}
    for path in entries:
        by_size.setdefault(path.stat().st_size, []).append(path)
    for paths in by_size.values():
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
            path.write_bytes(content)
    done = place.ok("eval", *EVAL, CACHED)
    place.same(done, place.undisturbed("eval", *EVAL))


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Change all tensors of a safetensors file; its header stays."""

    def damage(path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        content = {name: change(tensor).contiguous() for name, tensor in load_file(path).items()}
        save_file(content, path, metadata)

    return damage


ZEROS, INTEGERS = tensors(torch.zeros_like), tensors(lambda one: one.mul(10).to(torch.int32))
NANS, FEWER = tensors(lambda one: one.float() * torch.nan), tensors(lambda one: one[:-1])
WIDER = tensors(lambda one: torch.cat([one, one], dim=-1))


def weights_of(place: Place) -> Path:
    """Trained projections, as others may hand them over."""
    place.given(trained, "trained")
    return Path(shutil.copy(next((place.root / "trained").glob("*.safetensors")), place.root / "weights.safetensors"))


def damaged_weights(place: Place, damage: Damage) -> None:
    """Trained projections from others are not what they should be: one line."""
    path = weights_of(place)
    damage(path)
    place.refused("eval", *TRAINED, f"ckpt_path={path}", word="weights.safetensors")


def damaged_origin(place: Place, origin: str) -> None:
    """What trained projections say about themselves is not what the project writes: one line."""
    path = weights_of(place)
    save_file(load_file(path), path, {"origin": origin})
    place.refused("eval", *TRAINED, f"ckpt_path={path}", word="weights.safetensors")


def damaged_backbone(place: Place, damage: Damage) -> None:
    """The file of CLIP's weights is damaged."""
    path = Path(shutil.copy(place.tiny.golden.weights_path, place.root / "clip.pt"))
    damage(path)
    place.refused("eval", *EVAL, f"backbone.pretrained={path}", word="clip.pt")


def backbone_of_nans(place: Place) -> None:
    """CLIP's weights are not finite: an image is named, and there are no figures."""
    state = torch.load(place.tiny.golden.weights_path, weights_only=True)
    state["visual.class_embedding"] *= torch.nan
    torch.save(state, place.root / "clip.pt")
    place.refused("eval", *EVAL, f"backbone.pretrained={place.root / 'clip.pt'}", word="finite")
    expect(not (place.root / "run" / "metrics.json").exists(), "there are figures")


def two_parts(place: Place, *overrides: str) -> None:
    """Two parts of an evaluation."""
    for number in (1, 2):
        place.ok("eval", *EVAL, *overrides, f"test_data.shard={number}/2", to=f"part{number}")


def two_other_parts(place: Place) -> None:
    """Two parts of an evaluation with other options."""
    for number in (1, 2):
        place.ok("eval", *EVAL, "model.smoothing_sigma=2", f"test_data.shard={number}/2", to=f"other{number}")


def parts(place: Place) -> list[Path]:
    """The folders of two parts of an evaluation."""
    place.given(two_parts, "part1", "part2")
    return [place.root / "part1", place.root / "part2"]


def merged(place: Place, folders: list[Path], word: str = "") -> None:
    """Expect that parts are not joined."""
    place.refused("merge", *map(str, folders), "--out", str(place.root / "merged"), word=word)
    expect(not (place.root / "merged" / "metrics.json").exists(), "there are figures of parts that don't fit")


def damaged_part(place: Place, name: str, damage: Damage) -> None:
    """A file of a part is damaged: the parts are not joined."""
    folders = parts(place)
    damage(folders[1] / name)
    merged(place, folders, word=name)


def swapped_part(place: Place, name: str) -> None:
    """A file of one part lies in the folder of the other: the parts are not joined."""
    folders = parts(place)
    first, second = (folder / name for folder in folders)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    merged(place, folders)


def doubled_part(place: Place, name: str) -> None:
    """A file of one part lies in both folders: the parts are not joined."""
    folders = parts(place)
    shutil.copy(folders[0] / name, folders[1] / name)
    merged(place, folders)


def part_of_another_run(place: Place, name: str) -> None:
    """A file of a part is that of the same part with other options: the parts are not joined."""
    folders = parts(place)
    place.given(two_other_parts, "other2")
    shutil.copy(place.root / "other2" / name, folders[1] / name)
    merged(place, folders)


def parts_that_are_whole(place: Place) -> None:
    """Nothing is wrong: the parts are joined, and are one run."""
    folders = parts(place)
    place.ok("merge", *map(str, folders), "--out", str(place.root / "merged"))
    place.same(Done(0, "", "", place.root / "merged"), place.undisturbed("eval", *EVAL))


def without_a_column(path: Path) -> None:
    """Leave the second column of a CSV file out."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join([line[0], *line[2:]]) for line in lines) + "\n")


def with_a_word(path: Path) -> None:
    """Put a word where a score was."""
    lines = path.read_text().splitlines()
    fields = lines[1].split(",")
    lines[1] = ",".join([*fields[:3], "much", *fields[4:]])
    path.write_text("\n".join(lines) + "\n")


def doubled_rows(path: Path) -> None:
    """Put the first row where the second one was."""
    lines = path.read_text().splitlines()
    lines[2] = lines[1]
    path.write_text("\n".join(lines) + "\n")


STATE = "metric_state.safetensors"
FAULTS = [
    *(
        Fault(f"checkpoint_{name}", 10, partial(damaged_checkpoint, damage=damage))
        for name, damage in (("cut", cut), ("emptied", emptied), ("zeroed", zeroed), ("garbage", garbage))
    ),
    Fault("newest_checkpoint_cut", 10, damaged_newest_checkpoint),
    Fault("checkpoint_bomb", 14, checkpoint_bomb),
    Fault("anothers_checkpoint", 10, anothers_checkpoint),
    *(
        Fault(f"provenance_{name}", 10, partial(damaged_provenance, damage=damage))
        for name, damage in {
            **OTHER_JSON,
            "config_is_null": changed(config=None),
            "config_is_a_number": changed(config=3),
            "resumed_is_a_number": changed(resumed=3),
            "finished_is_a_list": changed(finished=[1]),
            "data_is_null": changed(data=None),
        }.items()
    ),
    *(
        Fault(f"trial_{name}", 10, partial(damaged_trial, damage=damage))
        for name, damage in {
            "cut": cut,
            "emptied": emptied,
            "a_list": text("[1]"),
            "an_empty_object": text("{}"),
            "status_is_a_number": changed(status=1),
            "number_is_a_word": changed(number="one"),
            "unknown_status": changed(status="excellent"),
            "objective_is_a_word": changed(objective="high"),
            "overrides_is_a_number": changed(overrides=5),
        }.items()
    ),
    *(
        Fault(f"sweep_{name}", 10, partial(damaged_sweep, damage=damage))
        for name, damage in {"cut": cut, "a_list": text("[1]"), "overrides_is_a_number": changed(overrides=5)}.items()
    ),
    *(
        Fault(f"metrics_{name}", 10, partial(damaged_metrics, damage=damage))
        for name, damage in {
            "cut": cut,
            "a_list": text("[1]"),
            "mean_is_a_list": changed(mean=[1]),
            "a_word_for_a_number": changed(mean__pixel_AP="high"),
            "nan_for_a_number": lambda path: changed(mean__pixel_AP=float("nan"))(path),
        }.items()
    ),
    *(
        Fault(f"{kind}_cache_{name}", 3, partial(damaged_cache, kind=kind, damage=damage))
        for kind in ("features", "text")
        for name, damage in (
            ("cut", cut),
            ("emptied", emptied),
            ("garbage", garbage),
            ("of_zeros", ZEROS),
            ("of_integers", INTEGERS),
            ("of_nans", NANS),
            ("with_fewer_rows", FEWER),
        )
    ),
    *(Fault(f"{kind}_cache_swapped", 3, partial(swapped_cache, kind=kind)) for kind in ("features", "text")),
    *(
        Fault(f"weights_{name}", 8, partial(damaged_weights, damage=damage))
        for name, damage in (
            ("cut", cut),
            ("emptied", emptied),
            ("garbage", garbage),
            ("of_integers", INTEGERS),
            ("of_nans", NANS),
            ("with_fewer_rows", FEWER),
            ("wider", WIDER),
        )
    ),
    *(
        Fault(f"origin_{name}", 8, partial(damaged_origin, origin=origin))
        for name, origin in (
            ("cut", '{"model":'),
            ("a_list", "[1]"),
            ("null", "null"),
            ("model_is_a_number", '{"model": 3}'),
            ("trained_on_is_a_word", '{"trained_on": "visa"}'),
            ("backbone_is_a_list", '{"backbone": []}'),
            ("epochs_is_a_word", '{"epochs": "many"}'),
            ("categories_are_numbers", '{"trained_on": {"name": "x", "title": "x", "categories": 4, "images": 1}}'),
        )
    ),
    *(
        Fault(f"backbone_{name}", 8, partial(damaged_backbone, damage=damage))
        for name, damage in (("cut", cut), ("emptied", emptied), ("garbage", garbage))
    ),
    Fault("backbone_of_nans", 3, backbone_of_nans),
    Fault("parts_that_are_whole", 7, parts_that_are_whole),
    *(
        Fault(f"part_{file}_{name}", 7, partial(damaged_part, name=path, damage=damage))
        for path, file, damages in (
            (
                STATE,
                "state",
                {
                    "cut": cut,
                    "emptied": emptied,
                    "garbage": garbage,
                    "half": FEWER,
                    "of_nans": NANS,
                    "of_integers": INTEGERS,
                    "empty": lambda path: save_file({}, path),
                    "without_tensors": lambda path: save_file({}, path, _metadata(path)),
                },
            ),
            (
                "predictions.csv",
                "predictions",
                {
                    "emptied": emptied,
                    "cut": cut,
                    "garbage": garbage,
                    "without_a_column": without_a_column,
                    "with_a_word": with_a_word,
                    "doubled_rows": doubled_rows,
                },
            ),
            (
                "provenance.json",
                "provenance",
                {
                    "cut": cut,
                    "a_list": text("[1]"),
                    "without_config": changed(config={}),
                    "shard_is_a_number": changed(config__test_data__shard=7),
                    "protocol_is_null": changed(protocol=None),
                },
            ),
        )
        for name, damage in damages.items()
    ),
    *(
        Fault(f"part_{file}_swapped", 7, partial(swapped_part, name=path))
        for path, file in ((STATE, "state"), ("predictions.csv", "predictions"), ("provenance.json", "provenance"))
    ),
    *(
        Fault(f"part_{file}_doubled", 7, partial(doubled_part, name=path))
        for path, file in ((STATE, "state"), ("predictions.csv", "predictions"), ("provenance.json", "provenance"))
    ),
    *(
        Fault(f"part_{file}_of_another_run", 7, partial(part_of_another_run, name=path))
        for path, file in ((STATE, "state"), ("predictions.csv", "predictions"))
    ),
]


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
