"""VisA (Zou et al., ECCV 2022) as published, with the split of one-class training (``1cls.csv``)."""

import csv
import io
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.paths import below
from datamodules.records import ANOMALOUS, NORMAL, Record

CSV = Path("split_csv") / "1cls.csv"
LABELS = {"normal": NORMAL, "anomaly": ANOMALOUS}


class Row(NamedTuple):
    """A line of the CSV file. Paths are relative to the data set's root; ``mask`` is empty for a normal image."""

    object: str
    split: str
    label: str
    image: str
    mask: str


class VisA(AnomalyDataModule):
    """A category is a folder that has rows in the CSV file; images and masks are those of its rows, in their order.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cup/000.JPG", "split_csv/1cls.csv"):
    ...         Path(folder, name).parent.mkdir()
    ...         Path(folder, name).touch()
    ...     text = "object,split,label,image,mask\\ncup,test,normal,cup/000.JPG,\\n"
    ...     _ = Path(folder, "split_csv/1cls.csv").write_text(text)
    ...     print(VisA(folder).image_names)
    [('cup', 'cup/000.JPG')]
    """

    name = "visa"
    title = "VisA"
    published = (
        *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
        *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
    )
    layout = f"<category>/Data/Images, <category>/Data/Masks, {CSV}"
    source = "The archive is https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar"

    def find_categories(self) -> list[str]:
        """Folders that have rows, of whatever split."""
        return [name for name in {row.object for row in self._rows} if name and (self.root / name).is_dir()]

    def read_category(self, category: str) -> list[Record]:
        """Records in the order of the rows."""
        rows = [row for row in self._rows if row.object == category and row.split == self.split]
        records = [self._record(row) for row in rows]
        files = [path for record in records for path in record.files]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise UserError(
                f"Expected the files of category {category} that {self.root / CSV} lists, but {len(missing)} of "
                f"{len(files)} are missing, the first is {missing[0]}; unpack the archive again"
            )
        return records

    def _record(self, row: Row) -> Record:
        if row.label not in LABELS:
            raise UserError(
                f"Expected labels {' or '.join(LABELS)} in {self.root / CSV}, but {row.image} has {row.label!r}"
            )
        image = below(self.root, row.image, f"column image of {self.root / CSV}")
        mask = below(self.root, row.mask, f"column mask of {self.root / CSV}") if row.mask else None
        return Record(image, row.object, LABELS[row.label], mask)

    @cached_property
    def _rows(self) -> list[Row]:
        path = self.root / CSV
        if not path.is_file():
            raise UserError(f"Expected the split of {self.title} in {path}, but there is no such file. {self.source}")
        try:
            # Spreadsheet programs put a byte order mark in front.
            with path.open(newline="", encoding="utf-8-sig") as file:
                text = file.read()
            if "\0" in text:
                raise csv.Error("it holds NUL characters")
            reader = csv.DictReader(io.StringIO(text, newline=""))
            columns = list(reader.fieldnames or ())
            lines = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"Expected {path} to be a CSV file in UTF-8, but could not read it ({error})") from error
        absent = [column for column in Row._fields if column not in columns]
        twice = [column for column in Row._fields if columns.count(column) > 1]
        if absent or twice:
            problem = f"{', '.join(absent)} is missing" if absent else f"{', '.join(twice)} is there twice"
            raise UserError(
                f"Expected columns {','.join(Row._fields)} in {path}, but {problem}; take the file from the archive"
            )
        return [Row(*((line[column] or "").strip() for column in Row._fields)) for line in lines]
