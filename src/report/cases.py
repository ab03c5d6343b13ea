"""The images of a test as they pass: scores and small pictures, on disk, so that memory is bounded at any number.

Each process writes a file of its own. Read together, in the order of the processes or parts, their rows are in the
order of predictions.csv.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from src.files import check_room, damaged
from src.report.pictures import unpack_map

FloatArray = npt.NDArray[np.float64]

ROOM = 1 << 25
"""Bytes of the disk that are left for the results: cases come before these and are worth less."""

# Names are bytes, as they are to Linux. Scores and pictures lie apart: a ranking reads no picture.
_SCHEMA = """
CREATE TABLE cases (
    id INTEGER PRIMARY KEY, category BLOB, image_path BLOB, label INTEGER, single_score REAL,
    pixel_ap REAL, mask_share REAL, low REAL, high REAL
);
CREATE TABLE source (root BLOB, bits INTEGER, is_upright INTEGER);
CREATE INDEX by_category ON cases (category);
CREATE TABLE pictures (id INTEGER PRIMARY KEY, image BLOB, anomaly_map BLOB, outline TEXT);
"""


# How many rows are as they are written here. A part's file may come from anywhere.
_WHOLE_ROWS = """
SELECT COUNT(*) FROM cases JOIN pictures USING (id) WHERE
    typeof(category) = 'blob' AND typeof(image_path) = 'blob'
    AND (label IS NULL OR typeof(label) = 'integer' AND label IN (0, 1))
    AND typeof(single_score) = 'real' AND abs(single_score) < 9e999
    AND typeof(low) = 'real' AND typeof(high) = 'real' AND abs(low) < 9e999 AND abs(high) < 9e999
    AND (pixel_ap IS NULL OR typeof(pixel_ap) = 'real' AND pixel_ap BETWEEN 0 AND 1)
    AND (mask_share IS NULL OR typeof(mask_share) = 'real' AND mask_share BETWEEN 0 AND 1)
    AND typeof(image) IN ('blob', 'null') AND typeof(anomaly_map) = 'blob' AND typeof(outline) = 'text'
"""
_WHOLE_SOURCE = "SELECT COUNT(*) FROM source WHERE typeof(root) = 'blob' AND typeof(bits) IN ('integer', 'null') "
_WHOLE_SOURCE += "AND is_upright IN (0, 1)"


RANKINGS = (
    "worst miss",
    "worst false alarm",
    "best hit",
    "highest score",
    "closest to the threshold",
    "worst map",
    "best map",
)
"""What images are shown first, in this order."""


class Case(NamedTuple):
    """An image of a test or a prediction.

    Attributes:
        category: as the data set has it.
        image_path: as the data set has it.
        label: 0 or 1; None where the data set has none.
        single_score: the score of the image on its own.
        pixel_ap: AP of the pixels within this image; None where its mask is empty, or there is none.
        mask_share: the share of its pixels that the mask marks; None where there is no mask.
        low: the lowest value of its anomaly map.
        high: the highest.
    """

    category: str
    image_path: str
    label: int | None
    single_score: float
    pixel_ap: float | None
    mask_share: float | None
    low: float
    high: float


class Picture(NamedTuple):
    """What is kept of an image to show it.

    Attributes:
        image: JPEG of what the model saw; None where the features came from a cache.
        anomaly_map: see `src.report.pictures.pack_map`.
        outline: see `src.report.pictures.outline`.
    """

    image: bytes | None
    anomaly_map: bytes
    outline: str


class Table(NamedTuple):
    """The cases of a category, an array each, NaN where something is not known.

    Attributes:
        ids: (N,) int64, the row of each in predictions.csv, counted from 0.
        label: (N,) {0, 1}.
        single_score: (N,).
        pixel_ap: (N,).
        mask_share: (N,).
        low: (N,).
        high: (N,).
    """

    ids: npt.NDArray[np.int64]
    label: FloatArray
    single_score: FloatArray
    pixel_ap: FloatArray
    mask_share: FloatArray
    low: FloatArray
    high: FloatArray


class CaseWriter:
    """Writes cases to a new file.

    Args:
        path: the file; one that is there is replaced.
        root: the folder that the images' paths are relative to.
        bits: of 16-bit images, see `datamodules.images.open_image`.
        is_upright: whether the images were turned as their EXIF tag says.
        lasts: whether the file has to survive that this process is killed, up to the last batch.

    Raises:
        OSError: it can't be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> case = Case("cup", "cup/bad/0.png", 1, 0.75, pixel_ap=0.5, mask_share=0.1, low=0.0, high=1.0)
        >>> with TemporaryDirectory() as folder:
        ...     writer = CaseWriter(Path(folder, "cases"), root=Path("data"))
        ...     writer.add([(case, Picture(None, b"", ""))])
        ...     writer.close()
        ...     with Cases([Path(folder, "cases")]) as cases:
        ...         print(cases.categories, cases.image_file(0).as_posix())
        ['cup'] data/cup/bad/0.png
    """

    def __init__(
        self, path: Path, root: Path, bits: int | None = None, is_upright: bool = False, lasts: bool = False
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with self._told():
            # No locks, which not every disk has: the file is this process's alone.
            self._file = sqlite3.connect(_address(path, "nolock=1"), uri=True, isolation_level=None)
            # It can be made again, so nothing waits for the disk.
            mode = "TRUNCATE" if lasts else "OFF"
            self._file.executescript(f"PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;" + _SCHEMA)
            self._file.execute("INSERT INTO source VALUES (?, ?, ?)", (os.fsencode(root), bits, int(is_upright)))

    def add(self, cases: Sequence[tuple[Case, Picture]]) -> None:
        """Write a batch; when this returns, other processes can read it.

        Raises:
            OSError: the disk is full, or nearly so.
        """
        check_room(self.path.parent, ROOM)
        rows = [(_bytes(case.category), _bytes(case.image_path), *case[2:]) for case, _ in cases]
        with self._told():
            self._file.execute("BEGIN")
            self._file.executemany("INSERT INTO cases VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._file.executemany("INSERT INTO pictures VALUES (NULL, ?, ?, ?)", [picture for _, picture in cases])
            self._file.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        _journal_of(self.path).unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(code, str(error), str(self.path)) from error


class Cases:
    """Reads the cases that the processes or the parts of a test have written.

    Args:
        paths: the files, in the order of the processes or parts.

    Attributes:
        files: the same.
        categories: those that have a case, in the order in which they came.

    Raises:
        UserError: a file is missing or damaged; also where it is read later.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = list(paths)
        self._files: list[tuple[Path, sqlite3.Connection]] = []
        self._starts = [0]
        found: dict[str, None] = {}
        for path in paths:
            with _told_of(path):
                self._files.append((path, sqlite3.connect(_address(path, "mode=ro&immutable=1"), uri=True)))
            file = len(self._files) - 1
            self._starts.append(self._starts[-1] + self._count(file))
            names = self._rows(file, "SELECT category FROM cases GROUP BY category ORDER BY MIN(id)")
            found.update((_text(name), None) for (name,) in names)
        self.categories = list(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _path, file in self._files:
            file.close()

    def __len__(self) -> int:
        return self._starts[-1]

    def table(self, category: str) -> Table:
        """The scores of a category's cases."""
        columns = "id, label, single_score, pixel_ap, mask_share, low, high"
        rows = [
            (start + row[0] - 1, *row[1:])
            for number, start in enumerate(self._starts[:-1])
            for row in self._rows(number, f"SELECT {columns} FROM cases WHERE category = ?", _bytes(category))
        ]
        ids, *others = np.array(rows, dtype=np.float64).T
        return Table(ids.astype(np.int64), *others)

    def names(self) -> Iterator[tuple[str, str]]:
        """Category and image path of each case."""
        for file in range(len(self._files)):
            for category, image_path in self._rows(file, "SELECT category, image_path FROM cases ORDER BY id"):
                yield _text(category), _text(image_path)

    def folders(self, category: str) -> Iterator[tuple[int | None, str]]:
        """The label and the folder of each case of a category."""
        for number in range(len(self._files)):
            query = "SELECT label, image_path FROM cases WHERE category = ?"
            for label, image_path in self._rows(number, query, _bytes(category)):
                yield label, PurePosixPath(_text(image_path)).parent.name

    def case(self, number: int) -> Case:
        """A case by its number, the row in predictions.csv."""
        category, image_path, *others = self._row(
            "category, image_path, label, single_score, pixel_ap, mask_share, low, high FROM cases", number
        )
        return Case(_text(category), _text(image_path), *others)

    def picture(self, number: int) -> Picture:
        """The picture of a case by its number."""
        return Picture(*self._row("image, anomaly_map, outline FROM pictures", number))

    def anomaly_map(self, number: int) -> npt.NDArray[np.floating]:
        """The anomaly map (H, W) of a case by its number, see `src.report.pictures.pack_map`."""
        low, high, png = self._row("low, high, anomaly_map FROM cases JOIN pictures USING (id)", number)
        with _told_of(self._files[self._file_of(number)][0]):
            return unpack_map(low, high, png)

    def image_file(self, number: int) -> Path:
        """Where the image of a case lay when it was tested."""
        return self.root(number) / self.case(number).image_path

    def root(self, number: int) -> Path:
        """The folder that a case's image path is relative to."""
        return Path(os.fsdecode(self._source(number)[0]))

    def bits(self, number: int) -> int | None:
        """How many bits of a 16-bit image were used."""
        bits: int | None = self._source(number)[1]
        return bits

    def is_upright(self, number: int) -> bool:
        """Whether the image of a case was turned as its EXIF tag says."""
        return bool(self._source(number)[2])

    def _count(self, file: int) -> int:
        """How many cases a file has.

        Raises:
            UserError: it has others than are written here.
        """
        count, last = next(self._rows(file, "SELECT COUNT(*), ifnull(MAX(id), 0) FROM cases"))
        (whole,), (sources,) = next(self._rows(file, _WHOLE_ROWS)), next(self._rows(file, _WHOLE_SOURCE))
        if not (count == last == whole and sources == 1):
            raise damaged(self._files[file][0], f"{whole} of {count} rows are what a run writes")
        return int(count)

    def _source(self, number: int) -> tuple[Any, ...]:
        return next(self._rows(self._file_of(number), "SELECT root, bits, is_upright FROM source"))

    def _row(self, columns: str, number: int) -> tuple[Any, ...]:
        file = self._file_of(number)
        return next(self._rows(file, f"SELECT {columns} WHERE id = ?", number - self._starts[file] + 1))

    def _file_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _rows(self, number: int, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        path, file = self._files[number]
        with _told_of(path):
            yield from file.execute(query, values)


def recover(path: Path) -> None:
    """Undo the batch that a process was writing when it was killed.

    Raises:
        UserError: the file is damaged.
    """
    with _told_of(path), closing(sqlite3.connect(_address(path, "nolock=1"), uri=True)) as file:
        file.execute("SELECT COUNT(*) FROM cases").fetchone()
    _journal_of(path).unlink(missing_ok=True)


def write_ordered(path: Path, cases: Cases, names: Iterable[tuple[str, str]]) -> None:
    """Write a file of the cases of some images in their order; of an image that is there twice, the later one.

    Args:
        path: the new file.
        cases: of which it is made, with one root.
        names: category and image path.
    """
    numbers = {name: number for number, name in enumerate(cases.names())}
    wanted = [numbers[name] for name in names if name in numbers]
    first = wanted[0] if wanted else 0
    writer = CaseWriter(path, cases.root(first), cases.bits(first), cases.is_upright(first))
    for start in range(0, len(wanted), 100):
        writer.add([(cases.case(number), cases.picture(number)) for number in wanted[start : start + 100]])
    writer.close()


def ranked(table: Table, threshold: float | None, count: int) -> dict[str, list[int]]:
    """The cases of a category that are worth a look.

    Args:
        table: the category's cases.
        threshold: of the single-image score: an image is called anomalous when its score is >= it. None where there is
            none; then the rankings do not ask whether a decision is right.
        count: how many of each ranking, at most.

    Returns:
        Name of a ranking -> the cases' numbers, the first is the worst, the best or the closest.

    Example:
        >>> scores, none = np.array([0.1, 0.8, 0.6, 0.3]), np.full(4, np.nan)
        >>> table = Table(np.arange(4), np.array([0.0, 0, 1, 1]), scores, none, none, none, none)
        >>> ranked(table, threshold=0.5, count=1)
        {'worst miss': [3], 'worst false alarm': [1], 'best hit': [2], 'closest to the threshold': [2]}
    """
    score, label, pixel_ap = table.single_score, table.label, table.pixel_ap
    called = np.ones(len(score), bool) if threshold is None else score >= threshold
    missed = np.ones(len(score), bool) if threshold is None else ~called
    rankings = {
        "worst miss": ((label == 1) & missed, score),
        "worst false alarm": ((label == 0) & called, -score),
        "best hit": ((label == 1) & called, -score),
        "highest score": (np.isnan(label), -score),
        "closest to the threshold": (np.full(len(score), threshold is not None), np.abs(score - (threshold or 0))),
        "worst map": (~np.isnan(pixel_ap), pixel_ap),
        "best map": (~np.isnan(pixel_ap), -pixel_ap),
    }
    chosen = {}
    for name, (belongs, key) in rankings.items():
        rows = np.flatnonzero(belongs)
        rows = rows[np.argsort(key[rows], kind="stable")[:count]]
        chosen[name] = table.ids[rows].tolist()
    return {name: ids for name, ids in chosen.items() if ids}


def _journal_of(path: Path) -> Path:
    """Where SQLite keeps what a batch that is being written replaces."""
    return path.with_name(f"{path.name}-journal")


def _address(path: Path, options: str) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a file into the user's line.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        yield
    except (sqlite3.Error, AttributeError, TypeError, ValueError) as error:
        raise damaged(path, str(error)) from error
