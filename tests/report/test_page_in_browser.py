"""report.html in a browser: what a reader clicks, drags and types, and what the page then shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from src.report.description import Description, ShownCase
from src.report.page import write_page
from tests.report.drawn import drawn_run

pytestmark = pytest.mark.slow

SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
NO_CURVES: dict[str, Any] = {"curves": {}, "histograms": {}}  # plotly takes a second to start
Opens = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        # Where the browser is known to be, a skipped test would look like a passed one.
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opens]:
    """Writes a page and opens it from disk; at the end, it has asked for nothing and has logged nothing."""
    contexts, seen = [], list[str]()

    def opens(description: Description, **options: Any) -> Page:
        address = tmp_path / "report.html"
        write_page(address, description)
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url[:100]))
        page.goto(address.as_uri())
        assert seen.pop(0) == address.as_uri()
        return page

    yield opens
    for context in contexts:
        context.close()
    assert [entry for entry in seen if not entry.startswith("data:image/")] == []


def shown_files(page: Page) -> list[str]:
    """The paths of the cards' images, in order."""
    titles: list[str] = page.locator("#cards .file").evaluate_all("files => files.map(file => file.title)")
    return [title.split(": ", 1)[1] for title in titles]


def outcome(case: ShownCase, threshold: float) -> str:
    decided = case["single_score"] >= threshold
    return {(1, 1): "hit", (1, 0): "miss", (0, 1): "false alarm", (0, 0): "correct normal"}[case["label"] or 0, decided]


def readout(page: Page) -> dict[str, str]:
    tiles: list[list[str]] = page.locator("#readout span").evaluate_all(
        "tiles => tiles.map(tile => [tile.firstChild.textContent.trim(), tile.querySelector('b').textContent])"
    )
    return dict(tiles)


def marks(page: Page) -> dict[str, list[float]]:
    """Where the marks of the curves are."""
    page.wait_for_selector("#charts .main-svg")
    found: dict[str, list[float]] = page.evaluate("""
        const figures = [...document.querySelectorAll("#charts figure")];
        const curves = figures.filter(figure => figure.querySelector(".plot").data[1]?.mode === "markers");
        const mark = figure => figure.querySelector(".plot").data[1];
        Object.fromEntries(curves.map(figure => [figure.firstChild.innerText, [mark(figure).x[0], mark(figure).y[0]]]))
    """)
    return found


def test_the_table_sorts_and_keeps_the_mean_last(opened: Opens) -> None:
    run = drawn_run(**NO_CURVES)
    assert run.metrics is not None
    page = opened(run)
    header = page.get_by_role("columnheader", name="pixel AUROC")
    values = [metrics["pixel_AUROC"] for metrics in run.metrics["categories"].values() if "pixel_AUROC" in metrics]
    for direction, expected in (("descending", sorted(values, reverse=True)), ("ascending", sorted(values))):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", direction)
        rows = page.locator("#metrics tr").evaluate_all("rows => rows.map(row => row.cells[4].dataset.value ?? null)")
        mean = run.metrics["mean"]["pixel_AUROC"]
        assert [value and float(value) for value in rows] == [None, *expected, None, mean]
    page.get_by_role("columnheader", name="category").first.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "none")
    names = page.locator("#metrics tr").evaluate_all("rows => rows.map(row => row.cells[0].innerText)")
    assert [names[2], names[-1]] == ["10", "mean"]


def test_the_threshold_moves_marks_counts_and_decisions(opened: Opens) -> None:
    run = drawn_run()
    page = opened(run)
    points, card = run.curves["nut"]["single"], run.cards["nut"]
    start = points["threshold"].index(card["thresholds"]["single"])
    slider = page.get_by_role("slider", name="Threshold")
    slider.focus()
    for presses in (0, 2):
        for _ in range(presses):
            slider.press("ArrowRight")  # to the right is a higher threshold
        index = start - presses
        threshold, recall, fpr = (points[key][index] for key in ("threshold", "recall", "fpr"))  # type: ignore[literal-required]
        own = [case for case in run.cases if case["category"] == "nut"]
        outcomes = [outcome(case, threshold) for case in own]
        shown = readout(page)
        names = {"Hits": "hit", "Misses": "miss", "False alarms": "false alarm", "Correct normals": "correct normal"}
        for name, kind in names.items():
            assert int(shown[name]) == outcomes.count(kind)
        assert float(shown["Threshold"]) == pytest.approx(threshold, abs=1e-5)
        assert shown["Recall"] == f"{100 * recall:.1f}%"
        assert marks(page) == {"ROC": [fpr, recall], "Precision-recall": [recall, points["precision"][index]]}
        line = page.evaluate("document.querySelectorAll('.plot')[2].layout.shapes[0].x0")
        assert line == threshold
        badges = page.locator("#cards li").evaluate_all(
            "cards => cards.map(card => [card.querySelector('.file').title, card.querySelector('.badge').textContent])"
        )
        of_file = {title.split(": ", 1)[1]: badge for title, badge in badges}
        assert [of_file[case["image_path"]] for case in own] == outcomes


def test_the_threshold_of_pixels_moves_all_three_curves(opened: Opens) -> None:
    run = drawn_run()
    page = opened(run)
    page.get_by_role("radio", name="Pixels").check()
    points = run.curves["nut"]["pixel"]
    best = points["threshold"].index(run.cards["nut"]["thresholds"]["pixel"])
    slider = page.get_by_role("slider", name="Threshold")
    slider.press("ArrowLeft")
    page.get_by_role("button", name="Best F1").click()
    for key, index in (("ArrowLeft", best + 1), ("Home", len(points["threshold"]) - 1)):
        slider.press(key)
        fpr, recall, precision, pro = (points[name][index] for name in ("fpr", "recall", "precision", "pro"))  # type: ignore[literal-required]
        assert marks(page) == {"ROC": [fpr, recall], "Precision-recall": [recall, precision], "PRO": [fpr, pro]}
        assert readout(page)["Per-region overlap"] == f"{100 * pro:.1f}%"


def test_filters_and_sorting(opened: Opens) -> None:
    run = drawn_run(**NO_CURVES)
    page = opened(run)
    page.locator("#gallery").get_by_role("combobox", name="Category").select_option("nut")
    own = [case for case in run.cases if case["category"] == "nut"]
    threshold = run.cards["nut"]["thresholds"]["single"]
    page.get_by_role("combobox", name="Sort by").select_option("Score, highest first")
    for label, kind in (("False alarms", "false alarm"), ("Hits", "hit"), ("Correct normals", "correct normal")):
        page.get_by_role("radio", name=label).check()
        expected = [case for case in own if outcome(case, threshold) == kind]
        expected.sort(key=lambda case: -case["single_score"])
        assert expected
        assert shown_files(page) == [case["image_path"] for case in expected]
        assert page.get_by_role("radio", name=f"{label} {len(expected)}").is_checked()
    page.get_by_role("radio", name="All").check()
    page.get_by_role("combobox", name="Sort by").select_option("Error, worst first")
    errors = {case["image_path"]: (threshold - case["single_score"]) * (1 if case["label"] else -1) for case in own}
    assert shown_files(page) == sorted(errors, key=lambda path: -errors[path])
    page.get_by_role("combobox", name="Sort by").select_option("File name")
    assert shown_files(page) == sorted(errors)
    page.get_by_role("combobox", name="Cases").select_option("Worst misses")
    ranks = {case["image_path"]: case["ranks"].get("worst miss", 0) for case in own}
    assert shown_files(page) == sorted((path for path in ranks if ranks[path]), key=lambda path: ranks[path])
    expect(page.locator("#legend")).to_contain_text("0.01153")


def test_the_fused_score_decides_where_it_is_chosen(opened: Opens) -> None:
    run = drawn_run({"nut": (9, 12)})
    page = opened(run)
    page.get_by_role("combobox", name="Score", exact=True).select_option("Fused score")
    expect(page.get_by_role("radio", name="Fused score")).to_be_checked()
    threshold = run.cards["nut"]["thresholds"]["image"]
    hits = [case for case in run.cases if case["label"] and (case["image_score"] or 0) >= threshold]
    page.get_by_role("radio", name=f"Hits {len(hits)}").check()
    assert set(shown_files(page)) == {case["image_path"] for case in hits}
    assert readout(page)["Hits"] == str(len(hits))


def test_an_image_opens_by_keyboard_and_gives_the_focus_back(opened: Opens) -> None:
    run = drawn_run(**NO_CURVES)
    page = opened(run)
    files = shown_files(page)
    page.locator("#cards button").nth(1).press("Enter")
    dialog = page.get_by_role("dialog")
    case = next(case for case in run.cases if case["image_path"] == files[1])
    expect(dialog.get_by_role("heading")).to_have_text(files[1])
    expect(dialog).to_contain_text(f"Single-image score{case['single_score']}")
    expect(dialog).to_contain_text(f"cls_score{case['terms']['cls_score']}")
    for key, position in (("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        expect(dialog.get_by_role("heading")).to_have_text(files[position])
    expect(dialog).to_contain_text(f"2 of {len(run.cases)}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#cards button").nth(2)).to_be_focused()


def test_opacity_and_outline_are_one_setting(opened: Opens) -> None:
    page = opened(drawn_run(**NO_CURVES))
    page.locator("#cards button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("slider").press("Home")
    dialog.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    assert page.locator("#cards .heat").first.evaluate("heat => getComputedStyle(heat).opacity") == "0"
    expect(page.get_by_role("slider", name="Opacity")).to_have_value("0")
    expect(page.get_by_role("checkbox")).not_to_be_checked()
    expect(page.locator("#cards svg").first).to_be_hidden()


def test_the_outlines_of_truth_and_threshold_are_told_apart(opened: Opens) -> None:
    page = opened(drawn_run({"nut": (0, 3)}, marks=True, **NO_CURVES))
    frame = page.locator("#cards .frame").first
    truth, marked = frame.locator("svg.outline"), frame.locator("svg.marked")
    colours = [one.locator("path").last.evaluate("path => getComputedStyle(path).stroke") for one in (truth, marked)]
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 229, 255)"]
    controls = page.locator("#gallery-controls")
    controls.get_by_label("Marked by the threshold").uncheck()
    expect(marked).to_be_hidden()
    expect(truth).to_be_visible()
    controls.get_by_label("Outline of the ground truth").uncheck()
    expect(truth).to_be_hidden()
    page.locator("#cards button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Marked by the threshold").check()
    expect(dialog.locator("svg.marked")).to_be_visible()
    expect(dialog.locator("svg.outline")).to_be_hidden()


def test_cards_are_made_as_they_are_asked_for(opened: Opens) -> None:
    page = opened(drawn_run({"nut": (70, 60)}, size=8, **NO_CURVES))
    cards = page.locator("#cards li")
    assert cards.count() == 60
    page.get_by_role("button", name="Show 60 more of 70").click()
    assert cards.count() == 120
    expect(cards.nth(60).locator("button")).to_be_focused()
    page.get_by_role("button", name="Show 10 more of 10").click()
    assert cards.count() == 130
    expect(page.locator("#more")).to_be_hidden()


def test_the_command_can_be_copied(opened: Opens) -> None:
    run = drawn_run(**NO_CURVES)
    page = opened(run)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).not_to_be_empty()
    assert page.evaluate("getSelection().toString()") == run.reproduce


@pytest.mark.parametrize(
    ("width", "scheme", "labels"), [(360, "light", True), (360, "dark", False), (1280, "dark", True)]
)
def test_it_fits_the_screen_in_both_colours(width: int, scheme: str, labels: bool, opened: Opens) -> None:
    page = opened(drawn_run(labels=labels), viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("#charts .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = "getComputedStyle(document.documentElement).backgroundColor"
    before = page.evaluate(background)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(background) != before
    page.locator("#cards button").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_a_prediction_shows_scores_and_images_alone(opened: Opens) -> None:
    run = drawn_run(labels=False)
    page = opened(run)
    assert page.locator("#cards li").count() == len(run.cases)
    scores = [case["single_score"] for case in sorted(run.cases, key=lambda case: -case["single_score"])]
    shown = page.locator("#cards .score").evaluate_all("scores => scores.map(score => Number(score.title))")
    assert shown == scores
    for name in ("#outcomes", "#threshold-control", "#levels"):
        expect(page.locator(name)).to_be_hidden()
    page.wait_for_selector("#charts .main-svg")
    assert page.locator("#charts figure").count() == 1
    assert "undefined" not in page.locator("main").inner_text()
    assert "null" not in page.locator("main").inner_text()


def test_a_calibrated_prediction_has_decisions(opened: Opens) -> None:
    run = drawn_run({"nut": (4, 4)}, labels=False)
    run.cards["nut"]["thresholds"]["single"] = 0.974
    page = opened(run)
    anomalous = {case["image_path"] for case in run.cases if case["single_score"] >= 0.974}
    page.get_by_role("radio", name=f"Predicted anomalous {len(anomalous)}").check()
    assert set(shown_files(page)) == anomalous
    page.wait_for_selector("#charts .main-svg")
    assert page.evaluate("document.querySelector('.plot').layout.shapes[0].x0") == 0.974
