"""What a run's results are, for whoever shows them: the page, dashboards, comparisons. Read from what the run has left.

Nothing is computed here that the run has computed: scores, metrics and curves stand in its files.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from typing_extensions import NotRequired, TypedDict

from datamodules.errors import UserError
from datamodules.images import UNREADABLE, load_image
from datamodules.records import ANOMALOUS, NORMAL
from src.metrics.functional import CurvePoints
from src.regions import Outline
from src.report.cases import Cases, Picture, Table, ranked
from src.report.pictures import MAP_SIZE, FloatArray, css_colours, heat_map, jpeg, svg_path
from src.report.table import notes_of
from src.run.journal import Name
from src.run.predictions import Prediction, iterate_predictions
from src.run.region_files import read_outlines
from src.run.results import (
    PREDICTIONS_FILE,
    WITHOUT_TEST,
    Decided,
    Metrics,
    Provenance,
    read_curves,
    read_metrics,
    read_provenance,
)

MOST_CASES_A_RANKING = 20


class Histogram(TypedDict):
    """Single-image scores of a category: k + 1 edges, and how many images lie between them."""

    edges: list[float]
    normal: list[int]
    anomalous: list[int]
    unlabelled: list[int]


class Card(TypedDict):
    """The data of a category, and what its scores and maps are read by.

    `defects` counts the anomalous images of each folder. `mask_shares` is the smallest, the median and the largest
    share of an image that a mask marks, of masks that are not empty; None without masks. `low` and `high` are the
    lowest and the highest value of any of the category's maps: where the colours of all its heat maps begin and end.
    `thresholds` are those of the best F1: `image` of the fused score, `single` of the score of an image alone, `pixel`;
    where the run has decided on images, `single` is the smallest score that is above its threshold.
    """

    images: int
    normal: int
    anomalous: int
    unlabelled: int
    defects: dict[str, int]
    mask_shares: list[float] | None
    vanished_masks: int | None
    empty_masks: int | None
    low: float
    high: float
    thresholds: dict[str, float]


class ShownCase(TypedDict):
    """An image that is shown. `ranks` says why: the name of a ranking and the place in it, counted from 1."""

    id: int
    category: str
    image_path: str
    label: int | None
    single_score: float
    image_score: float | None
    terms: dict[str, float]
    pixel_ap: float | None
    mask_share: float | None
    width: int
    height: int
    ranks: dict[str, int]
    overlay: NotRequired[str]


class Pictures(NamedTuple):
    """The pictures of a shown image.

    Attributes:
        image: JPEG of what the model saw; as it is squashed, it is shown in the aspect of the file.
        heat_map: PNG of the coloured map, to be laid over it.
        outline: SVG path of the ground truth's border in a square of 1000 x 1000; empty if there is none.
        marked: SVG path of the border of what the threshold of the maps marks, likewise.
    """

    image: bytes
    heat_map: bytes
    outline: str
    marked: str = ""


@dataclass(frozen=True)
class Description:
    """The results of a run.

    Attributes:
        title: what was trained and tested.
        kind: train, eval or predict.
        command: what was typed.
        reproduce: the command that runs it again; None of a prediction.
        facts: what the run was, label and value.
        metrics: what metrics.json holds; None of a prediction.
        notes: what to know of the metrics.
        fusion: how `image_score` was fused; None where there is none.
        cards: per category.
        curves: per category and level, see `src.metrics.functional.curve_points`.
        histograms: per category.
        cases: the images to show.
        hidden: how many images are not among them.
        palette: CSS colours of the heat maps, from low to high.
        has_marks: whether a threshold of the maps marks pixels of any image.
        has_decisions: whether the run has decided on images, by a threshold that was given.
    """

    title: str
    kind: str
    command: str
    reproduce: str | None
    facts: list[tuple[str, str]]
    metrics: Metrics | None
    notes: list[str]
    fusion: str | None
    cards: dict[str, Card]
    curves: Mapping[str, Mapping[str, CurvePoints]]
    histograms: dict[str, Histogram]
    cases: list[ShownCase]
    hidden: int
    palette: list[str]
    has_marks: bool
    has_decisions: bool
    _recorded: Cases
    _outlines: Mapping[Name, Outline]

    def pictures(self, category: str) -> Iterator[tuple[int, Pictures]]:
        """The pictures of a category's shown cases, one after the other. A case whose image is gone has none."""
        shown = [case for case in self.cases if case["category"] == category]
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:  # to decode a file takes longer than all the rest
            for start in range(0, len(shown), 4 * threads):  # a few at a time: memory is bounded
                some = shown[start : start + 4 * threads]
                kept = [self._recorded.picture(case["id"]) for case in some]
                files = [self._file_of(case) for case in some]
                for case, picture, image in zip(some, kept, pool.map(_image_of, kept, files), strict=True):
                    if image is not None:
                        yield case["id"], self._pictures(case, picture, image)

    def pictures_of(self, case: ShownCase) -> Pictures | None:
        """The pictures of a shown case; None if its image is gone."""
        picture = self._recorded.picture(case["id"])
        image = _image_of(picture, self._file_of(case))
        return None if image is None else self._pictures(case, picture, image)

    def map_of(self, case: ShownCase) -> FloatArray:
        """The anomaly map (h, w) of a shown case, in 8 bits between its lowest and highest value."""
        return self._recorded.anomaly_map(case["id"])

    def _pictures(self, case: ShownCase, picture: Picture, image: bytes) -> Pictures:
        card = self.cards[case["category"]]
        polygons = self._outlines.get((case["category"], case["image_path"]), [])
        return Pictures(
            image,
            heat_map(self.map_of(case), card["low"], card["high"]),
            picture.outline,
            svg_path(polygons, case["width"], case["height"]),
        )

    def _file_of(self, case: ShownCase) -> tuple[Path, int | None]:
        return self._recorded.image_file(case["id"]), self._recorded.bits(case["id"])


def describe(folder: Path, cases: Cases, max_images: int = 2000) -> Description:
    """Describe the results of a run.

    Args:
        folder: the run's folder, with provenance, predictions and, of a test, metrics and curves.
        cases: what was recorded while the images passed.
        max_images: show no more than so many; of more images only the ranked ones.

    Raises:
        UserError: a file is missing or damaged, or the cases are not those of the predictions.
    """
    provenance = read_provenance(folder)
    if provenance is None:
        raise UserError(f"{folder} holds no run; expected its provenance.json")
    metrics = read_metrics(folder, None) if provenance["kind"] not in WITHOUT_TEST else None
    tables = {name: cases.table(name) for name in cases.categories}
    of_categories = metrics["categories"] if metrics else {}
    decided = provenance.get("decisions", {})
    cards = {
        name: _card(cases, name, table, of_categories.get(name, {}), decided.get(name))
        for name, table in tables.items()
    }
    ranks = _ranks(tables, cards, max_images)
    shown: Sequence[int] = range(len(cases))
    if len(cases) > max_images:
        shown = sorted(sorted(ranks, key=lambda number: min(ranks[number].values()))[:max_images])
    rows = _rows_of(folder / PREDICTIONS_FILE, shown, cases)
    rule = provenance.get("fusion") or _model_of(provenance).get("fusion", "the method's rule")
    is_fused = rule != "single" and any(row.image_score is not None for row in rows.values())
    tested = provenance["protocol"]["tested_on"]
    is_predict = provenance["kind"] in WITHOUT_TEST
    outlines = read_outlines(folder) if is_predict else {}
    curves = read_curves(folder) or {}
    for name in decided.keys() & curves.keys():
        if single := curves[name].get("single"):
            curves[name]["single"] = _with_point(single, tables[name], cards[name]["thresholds"]["single"])
    return Description(
        title=(
            f"{provenance['kind']} {tested['title']} ({len(cases)} images)"
            if is_predict
            else provenance["protocol"]["line"]
        ),
        kind=provenance["kind"],
        command=provenance["command"],
        reproduce=None if is_predict else shlex.join(["python", "-m", "src.reproduce", str(folder)]),
        facts=_facts(provenance),
        metrics=metrics,
        notes=[*(notes_of(metrics) if metrics else []), *_decisions_in_words(decided)],
        fusion=rule if is_fused else None,
        cards=cards,
        curves=curves,
        histograms={name: _histogram(table) for name, table in tables.items()},
        cases=[_shown(cases, number, rows[number], ranks.get(number, {})) for number in shown],
        hidden=len(cases) - len(shown),
        palette=css_colours(),
        has_marks=bool(outlines),
        has_decisions=bool(decided),
        _recorded=cases,
        _outlines=outlines,
    )


def _ranks(tables: Mapping[str, Table], cards: Mapping[str, Card], max_images: int) -> dict[int, dict[str, int]]:
    """The number of each ranked case -> its place in each ranking."""
    count = min(MOST_CASES_A_RANKING, max(max_images // (6 * max(len(tables), 1)), 1))
    ranks: dict[int, dict[str, int]] = {}
    for name, table in tables.items():
        for ranking, ids in ranked(table, cards[name]["thresholds"].get("single"), count).items():
            for place, number in enumerate(ids, 1):
                ranks.setdefault(number, {})[ranking] = place
    return ranks


def _card(cases: Cases, category: str, table: Table, metrics: Mapping[str, float], decided: Decided | None) -> Card:
    marked = table.mask_share[table.mask_share > 0]
    thresholds = {level: metrics.get(f"{level}_F1Max_threshold") for level in ("image", "single", "pixel")}
    if decided is not None:
        # The page calls an image anomalous whose score is at its threshold, a decision one above it.
        thresholds["single"] = float(np.nextafter(decided["score_threshold"], np.inf))
    folders = Counter(folder for label, folder in cases.folders(category) if label == ANOMALOUS)
    return Card(
        images=len(table.ids),
        normal=int((table.label == NORMAL).sum()),
        anomalous=int((table.label == ANOMALOUS).sum()),
        unlabelled=int(np.isnan(table.label).sum()),
        defects=dict(sorted(folders.items())),
        mask_shares=[float(value) for value in np.quantile(marked, [0, 0.5, 1])] if len(marked) else None,
        vanished_masks=int(metrics["vanished_masks"]) if "vanished_masks" in metrics else None,
        empty_masks=int(metrics["empty_masks"]) if "empty_masks" in metrics else None,
        low=float(table.low.min()),
        high=float(table.high.max()),
        thresholds={level: value for level, value in thresholds.items() if value is not None},
    )


def _with_point(curve: CurvePoints, table: Table, threshold: float) -> CurvePoints:
    """The curve with the point of a given threshold: the page counts by the points, and no other may be as exact."""
    called = table.single_score >= threshold
    hits, alarms = int((called & (table.label == ANOMALOUS)).sum()), int((called & (table.label == NORMAL)).sum())
    point = {
        "threshold": threshold,
        "fpr": alarms / int((table.label == NORMAL).sum()),
        "recall": hits / int((table.label == ANOMALOUS).sum()),
        "precision": hits / (hits + alarms) if hits + alarms else 1.0,  # where nothing is called, as curves begin
    }
    place = sum(value > threshold for value in curve["threshold"])  # highest first
    columns = cast("dict[str, list[float]]", curve)
    more = {name: [*values[:place], point[name], *values[place:]] for name, values in columns.items()}
    return cast(CurvePoints, more)


def _decisions_in_words(decided: Mapping[str, Decided]) -> Iterator[str]:
    """What the thresholds are, and what they promise."""
    for category, one in decided.items():
        promise = one["max_false_alarms"]
        kept = "as was given" if promise is None else f"which at most {100 * promise:g} % of images without defects are"
        yield f"{category}: an image is anomalous above {one['score_threshold']:.4g}, {kept}"


def _histogram(table: Table, bins: int = 30) -> Histogram:
    low, high = table.single_score.min(), table.single_score.max()
    around = 0.0 if high > low else max(abs(low), 1) / 2
    edges = np.linspace(low - around, high + around, bins + 1)
    groups = {
        "normal": table.label == NORMAL,
        "anomalous": table.label == ANOMALOUS,
        "unlabelled": np.isnan(table.label),
    }
    counts = {name: np.histogram(table.single_score[rows], edges)[0].tolist() for name, rows in groups.items()}
    return cast(Histogram, {"edges": edges.tolist(), **counts})


def _rows_of(path: Path, shown: Sequence[int], cases: Cases) -> dict[int, Prediction]:
    """The predictions of the shown cases, by number.

    Raises:
        UserError: they are of other images than the cases.
    """
    wanted, rows = set(shown), {}
    for number, (row, name) in enumerate(zip_longest(iterate_predictions(path), cases.names())):
        if row is None or (row.category, row.image_path) != name:
            raise UserError(f"the recorded pictures are of other images than {path}, from row {number + 1} on")
        if number in wanted:
            rows[number] = row
    return rows


def _shown(cases: Cases, number: int, row: Prediction, ranks: dict[str, int]) -> ShownCase:
    case = cases.case(number)
    width, height = size_of(cases.image_file(number), cases.is_upright(number)) or (1, 1)
    return ShownCase(
        id=number,
        category=case.category,
        image_path=case.image_path,
        label=case.label,
        single_score=row.single_score,
        image_score=row.image_score,
        terms=row.terms,
        pixel_ap=case.pixel_ap,
        mask_share=case.mask_share,
        width=width,
        height=height,
        ranks=ranks,
    )


def size_of(path: Path, is_upright: bool) -> tuple[int, int] | None:
    """Width and height of an image file, from its first bytes; None if it is gone.

    Args:
        path: the file.
        is_upright: whether it is turned as its EXIF tag says.

    Example:
        >>> size_of(Path("not/there.png"), is_upright=False) is None
        True
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            lies = is_upright and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (height, width) if lies else (width, height)
    except UNREADABLE:
        return None


def _image_of(kept: Picture, file: tuple[Path, int | None]) -> bytes | None:
    """What the model saw. Where features came from a cache, which photos never do, the file is read again; None if it
    is gone.
    """
    if kept.image is not None:
        return kept.image
    path, bits = file
    try:
        return jpeg(load_image(path, bits, lambda line: None), MAP_SIZE)
    except UserError:
        return None


def _model_of(provenance: Provenance) -> Mapping[str, Any]:
    config: Mapping[str, Any] = provenance["config"]
    model: Mapping[str, Any] = config.get("model", {})
    return model


def _drawn_or_given(references: Mapping[str, Any]) -> str:
    """Where reference images come from, such as `4 a category drawn by seed 7`."""
    if "shots" not in references:
        return f"those in {references['root']}"
    replacement = " with replacement" if references["replacement"] else ""
    return f"{references['shots']} a category drawn{replacement} by seed {references['seed']}"


def _facts(provenance: Provenance) -> list[tuple[str, str]]:
    """What the run was, to read: everything is in provenance.json."""
    config: Mapping[str, Any] = provenance["config"]
    code, device, backbone = provenance["code"], provenance["device"], provenance["backbone"]
    facts = [("started", provenance["started"])]
    facts += [(f"model: {key}", str(value)) for key, value in _model_of(provenance).items()]
    facts += [("backbone", f"{backbone.get('name')}, {backbone.get('tag') or backbone['file']}")]
    facts += [("backbone's weights, sha256", backbone["sha256"] or "random weights")]
    if checkpoint := provenance["checkpoint"]:
        facts += [("checkpoint", str(checkpoint["file"])), ("checkpoint's sha256", str(checkpoint["sha256"]))]
    if trained := provenance.get("trained_weights"):
        facts += [("trained weights", f"{trained['file']}, selected by {trained['selected_by']}")]
    for role, data in provenance["data"].items():
        images = sum(counts["images"] for counts in data["categories"].values())
        facts += [(f"{role} data", f"{images} images of {len(data['categories'])} categories, sha256 {data['sha256']}")]
        if data["missing_categories"]:
            facts += [(f"{role} data, categories that are not there", ", ".join(data["missing_categories"]))]
    if references := provenance.get("references"):
        facts += [("reference images", f"{_drawn_or_given(references)}, sha256 {references['sha256']}")]
    size = config["test_data"].get("eval_size")
    facts += [("evaluation size", str(size)), ("seed", str(provenance["seed"]))]
    changed = " and changes that are in no commit" if code["dirty"] else ""
    facts += [("code", f"commit {code['commit'] or 'unknown'}{changed}")]
    facts += [("device", f"{device['name']} ({device['type']}), precision {device['precision']}")]
    facts += [("processes, threads", f"{device['processes']}, {device['threads']}")]
    facts += [("packages", ", ".join(f"{name} {version}" for name, version in provenance["packages"].items()))]
    if merged := provenance.get("merged_from"):
        facts += [("merged from", ", ".join(merged))]
    return facts
