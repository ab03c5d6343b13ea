"""The demo data set as a data module: MVTec's layout, drawn on first use."""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from datamodules.demo.generate import demo_data
from datamodules.demo.settings import DEFECTS
from datamodules.mvtec import MVTec


class Demo(MVTec):
    """`root` is the folder below which the data set is drawn, once."""

    name = "demo"
    title = "demo data"
    published: ClassVar[Sequence[str]] = tuple(DEFECTS)
    source = "Remove the folder, it is drawn anew"

    @cached_property
    def available_categories(self) -> list[str]:
        """All categories; draws the data set if it is not there yet."""
        self.root = demo_data(self.root)
        return super().available_categories
