"""A table that grows while a run goes on, and from which a run that was killed goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from src.files import SPARE, check_room, write_csv
from src.processes import is_first

Name = tuple[str, str]
"""Category and path of an image: the first two columns of each row, in either order."""


class Journal:
    """A CSV file whose rows are of images. Each process appends to a file of its own, the first to the table itself.

    What a killed run has left is read row by row; a last row that is not whole, and what follows a damaged one, is
    dropped, so that the run does these images again.

    Args:
        path: the table, such as `predictions.csv`.
        header: its columns, `image_path` and `category` first.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder, "scores.csv"), ["image_path", "category", "score"])
        ...     journal.append([["0.png", "cup", "0.5"], ["1.png", "cup", "0.7"]], rank=0)
        ...     journal.keep({("cup", "1.png")})
        ...     print(journal.rows())
        [['1.png', 'cup', '0.7']]
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.header = list(header)

    def append(self, rows: Iterable[Sequence[object]], rank: int) -> None:
        """Add rows to a process's file; when this returns, a kill of the process does not lose them.

        Raises:
            OSError: the disk is full, or nearly so.
        """
        path = self._file(rank)
        check_room(self.path.parent, SPARE)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists():
            writer.writerow(self.header)
        writer.writerows(rows)
        with path.open("ab") as file:  # in one write
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))

    def rows(self) -> list[list[str]]:
        """The whole rows of all processes, each image once."""
        found: dict[tuple[str, ...], list[str]] = {}
        for path in self._files():
            for row in self._whole_rows(path):
                found.setdefault(tuple(row), row)
        return list(found.values())

    def names(self) -> set[Name]:
        """The images of the rows, as (category, image path)."""
        return {(row[1], row[0]) for row in self.rows()}

    def keep(self, names: Collection[Name]) -> None:
        """Keep only the rows of some images, in one file. Only the first process does it."""
        if is_first() and self._files():
            self.finish([row for row in self.rows() if (row[1], row[0]) in names])

    def remove(self) -> None:
        """Remove the files of all processes: they are of another run."""
        for path in self._files():
            path.unlink()

    def finish(self, rows: Iterable[Sequence[object]]) -> None:
        """Write the table anew and remove the files of the other processes."""
        write_csv(self.path, [self.header, *rows])
        for path in self._files():
            if path != self.path:
                path.unlink()

    def in_order(self, order: Callable[[Name], int]) -> list[list[str]]:
        """The rows in the order of their images, those of one image as they came."""
        return sorted(self.rows(), key=lambda row: order((row[1], row[0])))

    def _file(self, rank: int) -> Path:
        return self.path if rank == 0 else self.path.with_name(f"{self.path.stem}.part{rank}{self.path.suffix}")

    def _files(self) -> list[Path]:
        parts = sorted(self.path.parent.glob(f"{self.path.stem}.part*{self.path.suffix}"))
        return [path for path in (self.path, *parts) if path.is_file()]

    def _whole_rows(self, path: Path) -> list[list[str]]:
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")
        rows: list[list[str]] = []
        limit = csv.field_size_limit(2**31 - 1)  # the outline of a region may be longer than what csv takes by itself
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            if next(reader, []) != self.header:
                return []
            for row in reader:
                if len(row) != len(self.header):
                    break
                rows.append(row)
        except csv.Error:
            pass
        finally:
            csv.field_size_limit(limit)
        return rows
