"""report.html: what a run was and gave, on one page that needs no network and opens from disk."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.files import SPARE, replacing
from src.metric_names import DECISION_NAMES, METRIC_NAMES, RESULT_KEYS, SINGLE_NAMES

if TYPE_CHECKING:
    from src.report.description import Card, Description, Pictures
    from src.run.results import Metrics

_FOLDER = Path(__file__).parent
_DASH = "\N{EN DASH}"
_KINDS = {"train": "Training and test", "eval": "Evaluation", "predict": "Prediction", "calibrate": "Calibration"}
_KEY_FIGURES = ("image_AUROC", "image_F1Max", "pixel_AUROC", "pixel_F1Max", "pixel_AUPRO")  # those that papers compare
_HIGHER_IS_BETTER = (*METRIC_NAMES, *(name for name in SINGLE_NAMES if not name.endswith("_threshold")))
_PERCENT = (*_HIGHER_IS_BETTER, *DECISION_NAMES)


class Cell(NamedTuple):
    """A cell of the table of categories.

    Attributes:
        text: what it shows.
        value: the number as in metrics.json, to sort by; None where there is none.
        title: the exact value, or why there is none.
        tint: how much of the colour it gets, from 0 for the lowest value of its column to 1 for the highest.
    """

    text: str
    value: float | None
    title: str
    tint: float | None = None


class Table(NamedTuple):
    """The metrics of a run: a row a category, and their means."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    mean: list[Cell]


def write_page(path: Path, description: Description) -> None:
    """Write the report of a run: one HTML file that asks for nothing else.

    The pictures are written one after the other, so that memory does not grow with their number.

    Args:
        path: the file, which is there whole or not at all.
        description: what the page shows.

    Raises:
        OSError: it can't be written.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Keys keep their order: it is that of the categories. A number that is none would make the page's JSON unreadable.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    has_plots = bool(description.curves or description.histograms)
    pieces = environment.get_template("page.html.jinja").generate(
        run=description,
        kind=_KINDS.get(description.kind, description.kind),
        figures=list(_key_figures(description)),
        table=table_of(description.metrics, description.cards) if description.metrics else None,
        heading=_heading,
        share=_share,
        as_json=_picture_json,
        style=_asset("page.css"),
        script=_asset("page.js"),
        plotly=_plotly() if has_plots else None,
    )
    # A name of a file need not be text; what is none becomes a question mark.
    with replacing(path, spare=SPARE) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(pieces)


def table_of(metrics: Metrics, cards: dict[str, Card]) -> Table:
    """The metrics in percent, the user's own as they are.

    Args:
        metrics: as in metrics.json.
        cards: of the categories; they say why a value is absent.

    Example:
        >>> card = {"normal": 1, "anomalous": 0, "vanished_masks": None}
        >>> cell = table_of({"mean": {"image_AP": 0.5}, "categories": {"cup": {}}}, {"cup": card}).rows[0][1][0]
        >>> cell.title
        'absent: needs normal and anomalous images, and this category has no anomalous ones'
    """
    mean, categories = metrics["mean"], metrics["categories"]
    given = dict.fromkeys([*mean, *(name for values in categories.values() for name in values)])
    own = [name for name in given if name not in RESULT_KEYS]
    columns = [name for name in _PERCENT if name in given] + own
    rows: list[tuple[str, list[Cell]]] = [(category, []) for category in categories]
    for name in columns:
        values = [categories[category].get(name) for category in categories]
        known = [value for value in values if value is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        for (category, cells), value in zip(rows, values, strict=True):
            if value is None:
                cells.append(Cell(_DASH, None, _why_absent(name, cards.get(category))))
                continue
            # Whether a user's own metric is better when it is high, nobody has said.
            tint = (value - low) / (high - low) if name in _HIGHER_IS_BETTER and high > low else None
            cells.append(Cell(_text(name, value), value, _exact(name, value, categories[category]), tint))
    means = [
        Cell(_text(name, mean[name]), mean[name], _exact(name, mean[name], {}))
        if name in mean
        else Cell(_DASH, None, "absent: this metric is given per category only")
        for name in columns
    ]
    return Table(columns, rows, means)


def _text(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name in _PERCENT else f"{value:.4g}"


def _exact(name: str, value: float, metrics: Mapping[str, float]) -> str:
    """A value as metrics.json has it, and what that file says about it."""
    parts = [f"{name} {value}"]
    if (threshold := metrics.get(f"{name}_threshold")) is not None:
        parts.append(f"at threshold {threshold}")
    if (error := metrics.get(f"{name}_error")) is not None:
        parts.append(f"from a histogram, off by at most {error}")
    return ", ".join(parts)


def _why_absent(name: str, card: Card | None) -> str:
    if name in DECISION_NAMES and card is not None:
        counted = "anomalous" if name == "escapes" else "normal"
        return f"absent: it is a share of the {counted} images, and this category has none"
    if name in _PERCENT and card is not None:
        if name.startswith("pixel_") and card["vanished_masks"] is None and card["anomalous"]:
            return "absent: this category has no masks"
        for kind in ("normal", "anomalous"):
            if not card[kind]:
                return f"absent: needs normal and anomalous images, and this category has no {kind} ones"
    return "absent: the metric gave no value for this category"


def _key_figures(description: Description) -> Iterator[tuple[str, str, str]]:
    """Name, value and exact value of what the page begins with."""
    mean: Mapping[str, float] = description.metrics["mean"] if description.metrics else {}
    for name in _KEY_FIGURES:
        if name in mean:
            yield " ".join(_heading(name)), _text(name, mean[name]), _exact(name, mean[name], {})
    cards = description.cards.values()
    yield "images", f"{sum(card['images'] for card in cards):,}", ""
    if any(card["anomalous"] for card in cards):
        yield "anomalous", f"{sum(card['anomalous'] for card in cards):,}", ""
    if len(cards) > 1:
        yield "categories", f"{len(cards):,}", ""


def _heading(name: str) -> tuple[str, str]:
    """What a metric is of, and its short name; a user's own has only a name.

    Example:
        >>> _heading("pixel_F1Max"), _heading("my_recall")
        (('pixel', 'F1-max'), ('', 'my_recall'))
    """
    if name in DECISION_NAMES:
        return "threshold", name.replace("_", " ")
    if name not in _PERCENT:
        return "", name
    level, short = name.split("_", 1)
    return level, short.replace("F1Max", "F1-max")


def _share(value: float) -> str:
    """A share of an image's pixels, in percent with two significant digits: masks may be tiny.

    Example:
        >>> _share(0.25), _share(0.00012), _share(1.0)
        ('25%', '0.012%', '100%')
    """
    return f"{float(f'{100 * value:.2g}'):g}%"


def _picture_json(pictures: Pictures) -> list[str]:
    image, heat_map, *outlines = pictures
    return [b64encode(image or b"").decode(), b64encode(heat_map or b"").decode(), *outlines]


def _asset(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    """Only the script that draws; page.js says what."""
    script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return Markup(script.replace("</script", "<\\/script"))
