"""report.html as a file: what stands in it, and that it asks for nothing else."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src.report.description import Description, Pictures
from src.report.page import write_page
from tests.report.drawn import EVIL, Drawn, drawn_run

VOID = {"meta", "link", "input", "img", "br"}


@dataclass
class Element:
    """An element of a page; text is a child without a tag."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    own_text: str = ""

    @property
    def text(self) -> str:
        return "".join(child.own_text for child in self.children)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.walk() if element.tag == tag]

    def by_id(self, name: str) -> Element | None:
        return next((element for element in self.walk() if element.attributes.get("id") == name), None)

    @property
    def content(self) -> str:
        """All of its text, with one space where there is any space."""
        return " ".join("".join(element.own_text for element in self.walk()).split())


class Reader(HTMLParser):
    """Reads a page to a tree, as a browser does: names are text again, and scripts end where they end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("page")
        self.open = [self.root]
        self.feed(text)
        assert [element.tag for element in self.open] == ["page"], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(Element("", own_text=data))


def written(folder: Path, description: Description) -> Element:
    write_page(folder / "report.html", description)
    return Reader((folder / "report.html").read_text(encoding="utf-8")).root


def rows_of(table: Element) -> dict[str, list[Element]]:
    """The rows by their names."""
    rows = [row for body in (*table.all("tbody"), *table.all("tfoot")) for row in body.all("tr")]
    return {row.all("th")[0].content: row.all("td") for row in rows}


def test_every_metric_stands_in_the_table(tmp_path: Path) -> None:
    run = drawn_run()
    assert run.metrics is not None
    table = written(tmp_path, run).by_id("metrics")
    assert table is not None
    rows = rows_of(table)
    names = [header.content for header in table.all("thead")[0].all("th")][1:]
    expected = [*run.metrics["categories"].items(), ("mean", run.metrics["mean"])]
    assert list(rows) == [" ".join(name.split()) for name, _ in expected]
    for cells, (_, metrics) in zip(rows.values(), expected, strict=True):
        shown = dict(zip(names, cells, strict=True))
        values = {name: cell.attributes.get("data-value") for name, cell in shown.items()}
        for name, value in metrics.items():
            if name == "image_F1Max_threshold":
                assert f"threshold {value}" in shown["image F1-max"].attributes["title"]
                continue
            is_own = name == "my_seconds"
            heading = name if is_own else name.replace("_", " ", 1).replace("F1Max", "F1-max")
            assert float(values.pop(heading) or "nan") == value
            assert shown[heading].content == (f"{value:.4g}" if is_own else f"{100 * value:.1f}")
        assert set(values.values()) <= {None}, "the page shows a number that metrics.json has not"


def test_an_absent_metric_is_a_dash_that_says_why(tmp_path: Path) -> None:
    table = written(tmp_path, drawn_run()).by_id("metrics")
    assert table is not None
    cell = rows_of(table)["10"][0]
    assert cell.text.strip() == "\N{EN DASH}"
    assert cell.attributes["title"].endswith("this category has no anomalous ones")


def test_key_figures_and_the_data(tmp_path: Path) -> None:
    run = drawn_run()
    assert run.metrics is not None
    page = written(tmp_path, run)
    figures = page.all("dl")[0]
    shown = dict(zip((n.content for n in figures.all("dt")), (v.content for v in figures.all("dd")), strict=True))
    mean = run.metrics["mean"]
    metrics = {name.replace("_", " ").replace("F1Max", "F1-max"): f"{100 * mean[name]:.1f}" for name in mean}
    labels = [case["label"] for case in run.cases]
    counts = {"images": str(len(labels)), "anomalous": str(sum(filter(None, labels))), "categories": "3"}
    assert shown == {name: metrics[name] for name in shown if name in metrics} | counts
    assert {"image AUROC", "pixel AUPRO"} < shown.keys()
    data = page.by_id("data")
    assert data is not None
    for cells, card in zip(rows_of(data).values(), run.cards.values(), strict=True):
        assert [cell.content for cell in cells[:3]] == [str(card[key]) for key in ("images", "normal", "anomalous")]  # type: ignore[literal-required]
        assert [float(cell.attributes["title"]) for cell in cells[-2:]] == [card["low"], card["high"]]
        masks = [cell.content for cell in cells[4:9]]
        assert masks == (["0.12%", "2%", "25%", "1", "0"] if card["anomalous"] else ["\N{EN DASH}"] * 5)


def test_names_stay_text(tmp_path: Path) -> None:
    run = drawn_run(title=EVIL, command=f'x="{EVIL}"', reproduce=None, notes=[EVIL], facts=[(EVIL, EVIL)], fusion=EVIL)
    page = written(tmp_path, run)
    assert not [script for script in page.all("script") if script.text.startswith("alert")]
    assert page.all("title")[0].text == EVIL
    command = page.by_id("command")
    assert command is not None
    assert command.text == f'x="{EVIL}"'
    assert not page.all("i"), "a defect's name became an element"
    data = page.by_id("description")
    assert data is not None
    assert json.loads(data.text)["categories"] == list(run.cards)
    assert json.loads(data.text)["cases"] == run.cases


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, drawn_run())
    addresses = [
        value
        for element in page.walk()
        for name, value in element.attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not [name for element in page.walk() for name in element.attributes if name.startswith("on")]
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta.attributes).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize("marks", [False, True])
def test_pictures_come_through(marks: bool, tmp_path: Path) -> None:
    run = drawn_run(marks=marks)
    blocks = [element for element in written(tmp_path, run).all("script") if "data-pictures" in element.attributes]
    for block, (category, drawn) in zip(blocks, run.drawn.items(), strict=True):
        assert list(run.cards)[int(block.attributes["data-pictures"])] == category
        found = {
            int(number): Pictures(base64.b64decode(image), base64.b64decode(heat_map), *outlines)
            for number, (image, heat_map, *outlines) in json.loads(block.text).items()
        }
        assert found == dict(drawn)


@pytest.mark.parametrize(("masks", "marks"), [(False, False), (True, False), (False, True), (True, True)])
def test_outlines_can_be_switched_off_where_there_are_some(masks: bool, marks: bool, tmp_path: Path) -> None:
    page = written(tmp_path, drawn_run(masks=masks, marks=marks))
    boxes = [box.attributes for box in page.all("input") if box.attributes["type"] == "checkbox"]
    # In the gallery and in the dialog.
    assert sum("data-outline" in box for box in boxes) == 2 * masks
    assert sum("data-marked" in box for box in boxes) == 2 * marks


def test_it_says_how_many_images_are_not_shown(tmp_path: Path) -> None:
    gallery = written(tmp_path, drawn_run(hidden=12345)).by_id("gallery")
    assert gallery is not None
    assert "12,345 more are not shown" in gallery.content


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"labels": False}, {"curves", "gallery", "plotly"}, {"categories", "metrics"}),
        ({"masks": False}, {"categories", "curves", "gallery"}, set()),
        ({"curves": {}, "histograms": {}}, {"categories", "gallery"}, {"curves", "plotly"}),
        ({"cases": []}, {"categories", "curves"}, {"gallery", "viewer"}),
    ],
)
def test_what_is_not_there_leaves_no_frame(
    options: dict[str, object], present: set[str], absent: set[str], tmp_path: Path
) -> None:
    page = written(tmp_path, drawn_run(**options))  # type: ignore[arg-type]
    ids = {element.attributes.get("id") for element in page.walk()}
    assert present <= ids
    assert not absent & ids
    targets = {link.attributes["href"].removeprefix("#") for link in page.all("a")}
    assert targets <= ids, "a link leads nowhere"
    if "masks" in options or "labels" in options:
        assert "mask" not in page.all("main")[0].content


def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    run = drawn_run({"nut": (2, 1)}, command="python -m src.eval test_data.root=/\udcff")
    run.cases[0]["image_path"] = "\udcff.png"
    assert "/?" in written(tmp_path, run).content


class Many(Drawn):
    """Has pictures that would fill the memory if they were in it together."""

    def pictures(self, category: str) -> Iterator[tuple[int, Pictures]]:
        for number, pictures in self.drawn[category]:
            yield number, pictures._replace(image=bytes(1_000_000))


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    run = Many(**vars(drawn_run({"nut": (40, 40)}, curves={}, histograms={})))
    tracemalloc.start()
    write_page(tmp_path / "report.html", run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "report.html").stat().st_size > 100e6
    assert peak < 20e6


class Broken(Drawn):
    """Fails while its pictures are read."""

    def pictures(self, category: str) -> Iterator[tuple[int, Pictures]]:
        yield self.drawn[category][0]
        raise OSError(28, "No space left on device")


def test_a_failure_leaves_the_page_of_before(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.html'"):
        write_page(path, Broken(**vars(drawn_run())))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
