"""Checks of a data module's options that need no file. Each raises a UserError of one line."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import UserError
from datamodules.paths import below
from datamodules.records import ANOMALOUS, Record
from datamodules.transforms import check_transforms

_LARGEST = 8192  # pixels a side: a batch of 8 such maps takes 2 GB


def check_options(
    *,
    split: tuple[str, Sequence[str]],
    transforms: str,
    image_size: int,
    eval_size: int | str,
    batch_size: int,
    num_workers: int | None,
    bits: int | None,
) -> None:
    """Check the options of a :class:`datamodules.base.AnomalyDataModule`; ``split`` comes with the valid ones.

    >>> fine = dict(transforms="default", image_size=240, eval_size="model", batch_size=8, num_workers=None, bits=None)
    >>> check_options(split=("test", ["test", "train"]), **fine)
    >>> check_options(split=("tset", ["test", "train"]), **fine)
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected split to be one of test, train, but got 'tset'
    """
    name, splits = split
    if name not in splits:
        raise UserError(f"Expected split to be one of {', '.join(splits)}, but got {name!r}")
    check_transforms(transforms)
    if not _is_int(image_size, at_least=1):
        raise UserError(f"Expected image_size to be 1 or more, but got {image_size!r}")
    if eval_size not in ("model", "native") and not (_is_int(eval_size, at_least=1) and int(eval_size) <= _LARGEST):
        raise UserError(
            f"Expected eval_size to be model, native or a number of pixels up to {_LARGEST}, but got {eval_size!r}"
        )
    if not _is_int(batch_size, at_least=1):
        raise UserError(f"Expected batch_size to be 1 or more, but got {batch_size!r}")
    if num_workers is not None and not _is_int(num_workers, at_least=0):
        raise UserError(f"Expected num_workers to be 0 or more, or null, but got {num_workers!r}")
    if bits is not None and not (_is_int(bits, at_least=8) and bits <= 16):
        raise UserError(f"Expected bits to be a number from 8 to 16, or null, but got {bits!r}")


def as_text(option: str, value: object) -> str:
    """Turn a value from a YAML file or a command line into text; text such as a category may look like a number there.

    Raises:
        UserError: the value is a list, a truth value or anything else that nobody means as text.

    >>> as_text("category", 4711)
    '4711'
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"Expected {option} to be text, but got {value!r}; put quotes around what is meant as text")
    return str(value)


def check_category(name: str, root: Path) -> None:
    """Check the name of a category, which becomes a folder's name in the run's folder and a word in prompts and tables.

    Raises:
        UserError: it is empty or not one line of text, or leads out of a folder.

    >>> check_category("metal_nut", Path("data"))
    >>> check_category("..", Path("data"))
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected a category to be a path below data, without '..', but got '..'
    """
    below(root, name, "a category")
    check_line(name, f" in {root}")


def check_line(name: str, place: str = "") -> None:
    """Check that the name of a category is a line of text.

    >>> check_line("Unterlegscheibe, verzinkt (M8)")
    >>> check_line(" ")
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected a category to be a line of text, but got ' '; rename it
    """
    if not name.strip() or any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise UserError(f"Expected a category{place} to be a line of text, but got {name!r}; rename it")


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Read ``i/n``, the i-th of n parts, counted from 1; None is 1/1.

    Raises:
        UserError: it is not of this form, or i is above n.

    >>> parse_shard("2/7")
    (2, 7)
    """
    if shard is None:
        return 1, 1
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", str(shard))
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"Expected shard to be i/n with 1 <= i <= n, such as 2/7, or null, but got {shard!r}")
    return int(match[1]), int(match[2])


def check_shard(shard: str | None, images: int, batch_size: int) -> None:
    """Check that each part has a batch to test: parts are made of whole batches.

    >>> check_shard("2/3", images=17, batch_size=8)
    """
    _, parts = parse_shard(shard)
    batches = -(-images // batch_size)
    if parts > batches:
        raise UserError(
            f"Expected shard to be of at most {batches} parts, the batches of {images} images at batch_size "
            f"{batch_size}, but got {shard!r}"
        )


def check_share(batch_size: int, processes: int) -> None:
    """Check that each of several processes gets an image of a training step.

    >>> check_share(batch_size=8, processes=4)
    """
    if batch_size < processes:
        raise UserError(
            f"Expected train_data.batch_size, the images of a step over all processes, to be {processes} or more for "
            f"{processes} processes, but got {batch_size}"
        )


def choose(option: str, asked: Sequence[str], available: Sequence[str]) -> list[str]:
    """Take those of ``available`` that are asked for, in the order of ``available``.

    Raises:
        UserError: nothing is asked for, or a name is not available or is there twice.

    >>> choose("categories", ["screw", "bottle"], available=["bottle", "cable", "screw"])
    ['bottle', 'screw']
    """
    # A single name is a string, whose letters would be taken for names.
    if isinstance(asked, str) or not asked:
        raise UserError(f"Expected {option} to be a list of names such as [{available[0]}], but got {asked!r}")
    asked = [as_text(f"each of {option}", name) for name in asked]
    twice = [name for name, count in Counter(asked).items() if count > 1]
    if twice:
        raise UserError(f"Expected each of {option} once, but {', '.join(twice)} is there more than once")
    unknown = [name for name in asked if name not in available]
    if unknown:
        raise UserError(f"Expected {option} to be among {', '.join(available)}, but got {', '.join(unknown)}")
    return [name for name in available if name in asked]


def check_val_categories(val_categories: Sequence[str], category_names: Sequence[str]) -> None:
    """Check that validation takes some of the categories and leaves some to train on.

    >>> check_val_categories(["screw"], ["bottle", "screw"])
    """
    chosen = choose("val_categories", val_categories, category_names)
    if len(chosen) == len(category_names):
        raise UserError(
            f"Expected val_categories to leave a category to train on, but they are all of {', '.join(category_names)}"
        )


def check_masks(records: Sequence[Record]) -> None:
    """Check that each anomalous image of a data set with masks has one.

    >>> check_masks([Record(Path("a.png"), "cup", ANOMALOUS, Path("a_mask.png"))])
    """
    if all(record.mask_path is None for record in records):
        return
    anomalous = [record for record in records if record.label == ANOMALOUS]
    bare = [record for record in anomalous if record.mask_path is None]
    if bare:
        raise UserError(
            f"Expected a mask for each anomalous image, but {len(bare)} of {len(anomalous)} have none, the first is "
            f"{bare[0].image_path}; add the masks or remove the images"
        )


def _is_int(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
