"""Data sets that are not as they should be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.faults.commands import EVAL, TRAIN, predict
from experiments.faults.damage import cut, emptied, garbage, weights_of
from experiments.faults.harness import Done, Fault, Place, expect, is_refused
from experiments.faults.meddling import at_scores

VISA = (*EVAL, "data@test_data=visa")
SUFFIX = "_mask.png"


def image_of(place: Place, defect: str = "broken") -> Path:
    """One of the three images of candle."""
    return next(iter(sorted((place.mvtec / "candle" / "test" / defect).glob("*.png"))))


def mask_of(place: Place) -> Path:
    """The mask of `image_of`."""
    return place.mvtec / "candle" / "ground_truth" / "broken" / f"{image_of(place).stem}{SUFFIX}"


def counted_once(place: Place, make: Callable[[Path], None]) -> None:
    """Links below a data set: each image counts once, or the data set is refused."""
    make(place.mvtec / "candle" / "test")
    done = place.run("eval", *EVAL)
    if done.code == 0:
        place.same(done, place.undisturbed("eval", *EVAL))
    else:
        is_refused(done)
    scored = place.run("predict", *predict(place), to="predicted")
    if scored.code == 0:
        expect(len(scored.rows) == 3, f"{len(scored.rows)} rows of three images")
    else:
        is_refused(scored)


def loop(folder: Path) -> None:
    """A link to a folder above."""
    (folder / "good" / "again").symlink_to(folder)


def two_loops(folder: Path) -> None:
    """Two folders with a link to each other."""
    (folder / "good" / "there").symlink_to(folder / "broken")
    (folder / "broken" / "back").symlink_to(folder / "good")


def link_to_itself(folder: Path) -> None:
    """A link that leads to itself."""
    (folder / "good" / "itself.png").symlink_to(folder / "good" / "itself.png")
    (folder / "good" / "itself").symlink_to(folder / "good" / "itself")


def link_to_an_image(folder: Path) -> None:
    """A second name of an image."""
    image = next((folder / "good").glob("*.png"))
    (folder / "good" / "zz.png").symlink_to(image)


def linked_folder(place: Place) -> None:
    """A data set whose folders lie on another disk, below links, is the data set."""
    for name in ("candle", "pcb1"):
        shutil.move(place.mvtec / name, place.root / f"moved_{name}")
        (place.mvtec / name).symlink_to(place.root / f"moved_{name}")
    place.same(place.ok("eval", *EVAL), place.undisturbed("eval", *EVAL))


def copies_as_training_data(place: Place, copy: Callable[[Path, Path], object]) -> None:
    """The images of the test under other names as training data: refused, by name."""
    for kind in ("test", "ground_truth"):
        for path in sorted((place.mvtec / "candle" / kind).rglob("*.png")):
            stem, is_mask = path.stem.removesuffix("_mask"), path.stem.endswith("_mask")
            target = place.mvtec / "bulb" / kind / path.parent.name / f"x{stem}{SUFFIX if is_mask else '.png'}"
            target.parent.mkdir(parents=True, exist_ok=True)
            copy(path, target)
    overrides = [*TRAIN, "train_data.categories=[bulb]"]
    place.refused("train", *overrides, word="candle")
    place.ok("train", *overrides, "allow_leakage=true", to="allowed")


def one_copy_as_training_data(place: Place) -> None:
    """One normal image of the test lies among the training data."""
    source = image_of(place, "good")
    shutil.copy(source, place.mvtec / "pcb1" / "test" / "good" / "zz.png")
    place.refused("train", *TRAIN, word="candle")


def changed_csv(place: Place, change: Callable[[list[str]], list[str]], word: str) -> None:
    """VisA's CSV file with other lines is refused."""
    path = place.visa / "split_csv" / "1cls.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    place.refused("eval", *VISA, word=word)


def repeated(lines: list[str]) -> list[str]:
    """One row ten times."""
    return [*lines, *[lines[1]] * 9]


def both_labels(lines: list[str]) -> list[str]:
    """A normal image that is an anomaly, too."""
    fields = next(line for line in lines[1:] if ",normal," in line).split(",")
    mask = next(line for line in lines[1:] if ",anomaly," in line).split(",")[4]
    return [*lines, ",".join([fields[0], "test", "anomaly", fields[3], mask])]


def spelt_twice(lines: list[str]) -> list[str]:
    """A row again, with its path spelt in another way."""
    fields = lines[1].split(",")
    return [*lines, ",".join([*fields[:3], fields[3].replace("/Images/", "/./Images//"), fields[4]])]


def column(number: int, value: str) -> Callable[[list[str]], list[str]]:
    """Another value in a column of the last row, an anomaly's."""

    def change(lines: list[str]) -> list[str]:
        fields = lines[-1].split(",")
        fields[number] = value
        return [*lines[:-1], ",".join(fields)]

    return change


def csv_bytes(place: Place, content: bytes) -> None:
    """VisA's CSV file is none."""
    (place.visa / "split_csv" / "1cls.csv").write_bytes(content)
    place.refused("eval", *VISA, word="1cls.csv")


def one_mask_for_two_images(place: Place) -> None:
    """`000.jpg` beside `000.png`, with one mask: refused with labels, told without."""
    image = image_of(place)
    Image.open(image).save(image.with_suffix(".jpg"))
    place.refused("eval", *EVAL, word=image.stem)
    done = place.ok("predict", *predict(place), to="predicted")
    expect(len(done.rows) == 4, f"{len(done.rows)} rows of four images")


def maps_do_not_overwrite_each_other(place: Place) -> None:
    """Three images whose names fall together in a simple scheme have three maps."""
    root, image = place.root / "images", image_of(place)
    for name in ("a/b/x.jpg", "a/b/x.png.png", "b/x.png", "a/b/x.npy.png", "b/x.PNG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, root / name)
    done = place.ok("predict", f"test_data.root={root}", "test_data.category=candle", "save_maps=true")
    maps = list(done.folder.rglob("*.npy"))
    expect(len(maps) == 5, f"{len(maps)} maps of five images")


def deep_images(place: Place) -> Path:
    """The images as 12 bits of 16."""
    root = place.root / "deep"
    root.mkdir()
    for path in sorted((place.mvtec / "candle" / "test").rglob("*.png")):
        values = np.asarray(Image.open(path).convert("L"), dtype=np.uint16) * 16
        Image.fromarray(values).save(root / path.name)
    return root


def twelve_bits_warn(place: Place) -> None:
    """12 bits in a file of 16 are nearly black: it is told."""
    done = place.ok("predict", f"test_data.root={deep_images(place)}", "test_data.category=candle")
    expect("bits" in done.warnings, f"no warning: {done.warnings[:200]}")


def twelve_bits_as_told(place: Place) -> None:
    """With `bits=12` the scores are those of the same images in 8 bits."""
    grey = place.root / "grey"
    grey.mkdir()
    for path in sorted((place.mvtec / "candle" / "test").rglob("*.png")):
        Image.open(path).convert("L").save(grey / path.name)
    plain = place.ok("predict", f"test_data.root={grey}", "test_data.category=candle", to="grey_run")
    root = deep_images(place)
    done = place.ok("predict", f"test_data.root={root}", "test_data.category=candle", "test_data.bits=12")
    pairs = zip(plain.rows, done.rows, strict=True)
    gap = max(abs(float(one["map_max"]) - float(other["map_max"])) for one, other in pairs)
    expect(gap < 1e-2, f"the scores differ by {gap:g}")


def long_text_warns(place: Place) -> None:
    """Sentences of more tokens than CLIP reads are told."""
    done = place.ok("predict", *predict(place, "candle " * 90))
    expect("77" in done.warnings + done.out, f"no warning: {done.warnings[:200]}")


def empty_mask_is_told(place: Place) -> None:
    """The mask of an anomalous image is empty on disk, which is not the same as one that vanished by resizing."""
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask_of(place))))).save(mask_of(place))
    done = place.run("eval", *EVAL)
    text = done.warnings + done.err + done.out
    if done.code == 0 and (done.folder / "metrics.json").is_file():
        text += (done.folder / "metrics.json").read_text()
    expect("empty" in text, f"nobody says that a mask is empty: {text[-300:]}")


def a_list_for_a_category(place: Place) -> None:
    """A list is no name; `test_data.category=[a,b]` would be one, taken as it is typed."""
    place.refused("predict", f"test_data.root={place.mvtec / 'candle'}", "test_data={category:[a,b]}", word="category")


def a_number_for_a_category(place: Place) -> None:
    """`test_data.category=10` is a name, as in sentences about a ten."""
    place.ok("predict", f"test_data.root={place.mvtec / 'candle'}", "test_data.category=10")


def other_prompts_warn(place: Place) -> None:
    """Projections that were trained with other sentences are told."""
    weights = weights_of(place)
    options = ["model=sdp_plus", "test_data.categories=[candle]", f"ckpt_path={weights}"]
    done = place.ok("eval", *options, "prompts.templates=['a drawing of {}.']")
    expect("prompts" in done.warnings, f"no warning: {done.warnings[:300]}")


def other_layers_warn(place: Place) -> None:
    """Projections that were trained with other settings of the method are told."""
    weights = weights_of(place)
    options = ["model=sdp_plus", "test_data.categories=[candle]", f"ckpt_path={weights}"]
    done = place.ok("eval", *options, "model.feature_tap=block_output")
    expect("feature_tap" in done.warnings, f"no warning: {done.warnings[:300]}")


def the_demo_in_a_users_folder(place: Place) -> None:
    """The demo data are not drawn into a folder that is somebody's."""
    place.refused("eval", "+exp=sdp_demo", f"test_data.root={place.mvtec}", word="mvtec")
    expect(not any("demo" in path.name for path in place.mvtec.iterdir()), "something was drawn there")


def bad_image(place: Place, damage: Callable[[Path], None]) -> None:
    """An image can't be read: it is named, there are no figures, and with the image mended the run goes on."""
    path = image_of(place)
    content = path.read_bytes()
    damage(path)
    for workers in (0, 1):
        place.refused("eval", *EVAL, f"test_data.num_workers={workers}", word=path.name, to=f"run{workers}")
        expect(not (place.root / f"run{workers}" / "metrics.json").exists(), "there are figures")
    path.write_bytes(content)
    place.goes_on("eval", *EVAL)


def bad_mask(place: Place, damage: Callable[[Path], None]) -> None:
    """A mask can't be read, or has another size: it is named."""
    damage(mask_of(place))
    place.refused("eval", *EVAL, word=mask_of(place).name)


def huge(path: Path) -> None:
    """A header that promises more pixels than there is memory for."""
    content = bytearray(path.read_bytes())
    content[16:24] = (200_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


def smaller(path: Path) -> None:
    """Half its size."""
    image = Image.open(path)
    image.resize((image.width // 2, image.height // 2)).save(path)


def of_floats(path: Path) -> None:
    """Numbers that are not finite, in a file with the suffix of another format."""
    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(path, format="TIFF")


def gone_meanwhile(place: Place) -> None:
    """An image is removed while the run is at work."""
    path = image_of(place, "good").parents[3] / "pcb1" / "test" / "broken"
    last = sorted(path.glob("*.png"))[-1]
    content = last.read_bytes()

    def remove() -> None:
        last.unlink()

    done = Done(0, "", "", place.root)
    run = place.start("eval", *EVAL, meddle=[at_scores(1, remove)])
    run.before.pop(last.relative_to(place.root).as_posix())
    done = run.wait()
    is_refused(done, last.name)
    last.write_bytes(content)
    place.goes_on("eval", *EVAL)


def swapped_before_resuming(place: Place) -> None:
    """Images change between a run and its continuation: refused."""
    run = place.run("eval", *EVAL, meddle=[at_scores(2, lambda: os._exit(9))])
    expect(run.code == 9, f"it ended with {run.code}")
    path = image_of(place)
    path.write_bytes(path.read_bytes() + b"\0")
    place.refused("eval", *EVAL, word="data.test")


def strange_names(place: Place) -> None:
    """Names with line ends, commas, quotes and bytes that are no text come out as they were."""
    root = place.root / "strange"
    root.mkdir()
    names = [
        b"a,b.png",
        b'say "cheese".png',
        b"two\nlines.png",
        b"\xff\xfe.png",
        b"  .png",
        "écran ü.png".encode(),
        b"-m.png",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(image_of(place).read_bytes())
    done = place.ok("predict", f"test_data.root={root}", "test_data.category=candle", "save_maps=true")
    text = (done.folder / "predictions.csv").read_bytes()
    missing = [name for name in names if name.replace(b'"', b'""') not in text]
    expect(not missing, f"not in predictions.csv: {missing}")
    expect(len(list(done.folder.rglob("*.npy"))) == len(names), "not each image has a map")


def a_pipe_among_images(place: Place) -> None:
    """A named pipe with an image's name is waited for by nobody."""
    os.mkfifo(place.mvtec / "candle" / "test" / "good" / "pipe.png")
    done = place.run("eval", *EVAL)
    expect(done.code in (0, 1), f"it ended with {done.code}")
    if done.code == 0:
        place.same(done, place.undisturbed("eval", *EVAL))


def a_folder_with_an_images_name(place: Place) -> None:
    """A folder is called like an image."""
    (place.mvtec / "candle" / "test" / "good" / "x.png").mkdir()
    place.same(place.ok("eval", *EVAL), place.undisturbed("eval", *EVAL))


FAULTS = [
    *(
        Fault(f"links_{make.__name__}", 5, partial(counted_once, make=make))
        for make in (loop, two_loops, link_to_itself, link_to_an_image)
    ),
    Fault("links_to_another_disk", 5, linked_folder),
    Fault("copies_as_training_data", 6, partial(copies_as_training_data, copy=shutil.copy)),
    Fault("hard_links_as_training_data", 6, partial(copies_as_training_data, copy=lambda a, b: os.link(a, b))),
    Fault("links_as_training_data", 6, partial(copies_as_training_data, copy=lambda a, b: b.symlink_to(a))),
    Fault("one_copy_as_training_data", 6, one_copy_as_training_data),
    *(
        Fault(f"visa_rows_{change.__name__}", 8, partial(changed_csv, change=change, word="candle"))
        for change in (repeated, both_labels, spelt_twice)
    ),
    *(
        Fault(f"visa_{what}", 15, partial(changed_csv, change=column(number, value), word=word))
        for what, number, value, word in (
            ("image_above_the_root", 3, "../mvtec/candle/test/good/000.png", "image"),
            ("image_absolute", 3, "/etc/hostname", "image"),
            ("mask_above_the_root", 4, "../../../../etc/hostname", "mask"),
            ("object_above_the_root", 0, "../mvtec", "category"),
            ("object_absolute", 0, "/tmp", "category"),
        )
    ),
    *(
        Fault(f"visa_csv_{name}", 8, partial(csv_bytes, content=content))
        for name, content in (
            ("emptied", b""),
            ("binary", bytes(range(256)) * 4),
            ("of_nulls", b"\0" * 100),
            ("with_semicolons", b"object;split;label;image;mask\n"),
            ("with_a_huge_field", b"object,split,label,image,mask\n" + b"x" * 200_000 + b",test,normal,a,\n"),
        )
    ),
    Fault("one_mask_for_two_images", 8, one_mask_for_two_images),
    Fault("maps_do_not_overwrite_each_other", 8, maps_do_not_overwrite_each_other),
    Fault("twelve_bits_warn", 8, twelve_bits_warn),
    Fault("twelve_bits_as_told", 8, twelve_bits_as_told),
    Fault("long_text_warns", 8, long_text_warns),
    Fault("empty_mask_is_told", 8, empty_mask_is_told),
    Fault("a_list_for_a_category", 8, a_list_for_a_category),
    Fault("a_number_for_a_category", 8, a_number_for_a_category),
    Fault("other_prompts_warn", 8, other_prompts_warn),
    Fault("other_layers_warn", 8, other_layers_warn),
    Fault("the_demo_in_a_users_folder", 8, the_demo_in_a_users_folder),
    *(
        Fault(f"image_{damage.__name__}", 8, partial(bad_image, damage=damage))
        for damage in (cut, emptied, garbage, huge, of_floats)
    ),
    *(
        Fault(f"mask_{damage.__name__}", 8, partial(bad_mask, damage=damage))
        for damage in (cut, emptied, garbage, smaller)
    ),
    Fault("gone_meanwhile", 8, gone_meanwhile),
    Fault("swapped_before_resuming", 8, swapped_before_resuming),
    Fault("strange_names", 8, strange_names),
    Fault("a_pipe_among_images", 5, a_pipe_among_images),
    Fault("a_folder_with_an_images_name", 5, a_folder_with_an_images_name),
]
