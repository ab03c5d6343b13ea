"""Whatever happens to the page, the metrics are there; and no page shows what is not so."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from src.anomaly_module import AnomalyModule
from src.files import sha256_of
from src.models.method import Scores
from src.run.merge import merge
from tests.cli import NO_REPORT, Cli, golden_backbone
from tests.golden_reference import Golden
from tests.report.pages import facts_of, pictures_of

LARGEST = torch.finfo(torch.float32).max


@pytest.fixture(scope="module")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of two categories."""
    return golden_a.write_mvtec(tmp_path_factory.mktemp("data") / "mvtec")


@pytest.fixture(scope="module")
def options(golden_a: Golden, data: Path) -> list[str]:
    quick = ["prompts.templates=['a photo of a {}.']", "model.representative=mean", "test_data.batch_size=1"]
    backbone = [option for option in golden_backbone(golden_a) if option != NO_REPORT]
    return ["+exp=sdp_mvtec", *backbone, *quick, f"test_data.root={data}"]


@pytest.fixture(scope="module")
def parts(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        cli = Cli(patch, None, tmp_path_factory.mktemp("parts"))
        return [cli.ok("eval", *options, f"test_data.shard={n}/2", name=f"part{n}").folder for n in (1, 2)]


def copied(parts: list[Path], folder: Path) -> list[Path]:
    return [shutil.copytree(part, folder / part.name) for part in parts]


def sign(part: Path) -> None:
    """Have a part say that it has written what is there."""
    path = part / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["files"]["cases.sqlite"] = sha256_of(part / "cases.sqlite")
    path.write_text(json.dumps(provenance))


def is_joined_without_a_page(parts: list[Path], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Merge, and return the line that says why there is no page."""
    with pytest.warns(UserWarning, match=r"no report\.html") as told:
        merge(parts, out)
    assert "candle" in capsys.readouterr().out  # the table of results
    assert json.loads((out / "metrics.json").read_text())["categories"].keys() == {"candle", "pcb1"}
    assert json.loads((out / "provenance.json").read_text())["finished"]
    assert not (out / "report.html").exists()
    assert len(told) == 1
    return str(told[0].message)


def cut(part: Path) -> None:
    path = part / "cases.sqlite"
    path.write_bytes(path.read_bytes()[:9000])


def remove(part: Path) -> None:
    (part / "cases.sqlite").unlink()


@pytest.mark.parametrize("damage", [cut, remove])
def test_parts_with_damaged_cases_are_joined_without_a_page(
    damage: Callable[[Path], None], parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = copied(parts, tmp_path)
    damage(two)
    assert "part2/cases.sqlite is damaged" in is_joined_without_a_page([one, two], tmp_path / "merged", capsys)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE cases SET single_score = '<script>'",
        "UPDATE cases SET category = 'candle'",
        "UPDATE cases SET low = -9e999",
        "UPDATE cases SET id = id + 100",
        "DELETE FROM source",
        "DELETE FROM pictures",
        "UPDATE pictures SET image = 'text'",
        "UPDATE pictures SET anomaly_map = x'00'",
    ],
)
def test_cases_that_no_run_writes_are_one_line(
    change: str, parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = copied(parts, tmp_path)
    with sqlite3.connect(two / "cases.sqlite") as file:
        file.execute(change)
    file.close()
    sign(two)
    assert "part2/cases.sqlite is damaged" in is_joined_without_a_page([one, two], tmp_path / "merged", capsys)


def test_scores_are_never_shown_beside_anothers_picture(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = copied(parts, tmp_path)
    shutil.copy(one / "cases.sqlite", two / "cases.sqlite")  # as many images
    sign(two)
    assert "other images" in is_joined_without_a_page([one, two], tmp_path / "merged", capsys)


def test_a_part_without_cases_is_told(parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = copied(parts, tmp_path)
    provenance = json.loads((two / "provenance.json").read_text())
    del provenance["files"]["cases.sqlite"]
    (two / "provenance.json").write_text(json.dumps(provenance))
    assert "no hash of cases.sqlite" in is_joined_without_a_page([one, two], tmp_path / "merged", capsys)


def asked(parts: list[Path], folder: Path, **config: object) -> list[Path]:
    """The parts, as if their commands had asked for something else."""
    changed = copied(parts, folder)
    for part in changed:
        provenance = json.loads((part / "provenance.json").read_text())
        provenance["config"] |= config
        (part / "provenance.json").write_text(json.dumps(provenance))
    return changed


def test_the_whole_has_what_its_parts_asked_for(parts: list[Path], tmp_path: Path) -> None:
    merge(asked(parts, tmp_path / "1", callbacks={"report": {"max_images": 2}}), tmp_path / "few")
    assert len(facts_of(tmp_path / "few")["cases"]) == 2
    merge(asked(parts, tmp_path / "2", callbacks={"report": None}, save_overlays=True), tmp_path / "none")
    assert not (tmp_path / "none" / "report.html").exists()
    assert len(list((tmp_path / "none" / "overlays").rglob("*.png"))) == 6


def largest_maps(scores: Scores) -> Scores:
    is_high = scores.anomaly_map > scores.anomaly_map.mean()
    return scores._replace(anomaly_map=torch.where(is_high, LARGEST, -LARGEST))


def large_doubles(scores: Scores) -> Scores:
    return scores._replace(anomaly_map=1e300 * scores.anomaly_map.double())


def one_large_score(scores: Scores) -> Scores:
    large = torch.full_like(scores.single_score, 1e30)
    return scores._replace(single_score=large, terms=dict.fromkeys(scores.terms, large))


@pytest.mark.parametrize("change", [largest_maps, large_doubles, one_large_score])
def test_scores_of_any_size_have_a_page(
    change: Callable[[Scores], Scores],
    cli: Cli,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    plain = AnomalyModule.forward
    monkeypatch.setattr(AnomalyModule, "forward", lambda self, batch: change(plain(self, batch)))
    run = cli.ok("eval", *options, "save_overlays=true")
    assert [str(warning.message) for warning in recwarn] == []
    assert len(pictures_of(run.folder)) == len(list((run.folder / "overlays").rglob("*.png"))) == 6
    for name, card in facts_of(run.folder)["cards"].items():
        assert np.isfinite([card["low"], card["high"]]).all(), name
    for histogram in facts_of(run.folder)["histograms"].values():
        assert sum(histogram["normal"]) + sum(histogram["anomalous"]) == 3


def test_fewer_images_than_none_are_refused(cli: Cli, options: list[str]) -> None:
    message = cli.error("eval", *options, "callbacks.report.max_images=-1")
    assert message == "callbacks.report.max_images must be 0 or more, but got -1"


def test_the_command_to_copy_can_be_pasted(cli: Cli, options: list[str]) -> None:
    run = cli.ok("eval", *options, name="my run")
    [shown] = re.findall('<code id="command">(.*?)</code>', (run.folder / "report.html").read_text(), re.DOTALL)
    assert shlex.split(html.unescape(shown)) == ["python", "-m", "src.reproduce", str(run.folder)]


class Taking(Callback):
    """Removes an image when it was tested, before anything is made of it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_test_end(self, *_: object) -> None:
        self.path.unlink()


def test_an_image_that_is_gone_leaves_the_others_their_overlays(
    cli: Cli, options: list[str], data: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    gone = min(root.glob("candle/test/*/*.png"))
    taking = f"+callbacks.taking={{_target_: tests.report.test_hard_input.Taking, path: {gone}}}"
    with pytest.warns(UserWarning, match="no overlays of 1 of 6 images, such as: .*" + re.escape(str(gone))):
        run = cli.ok("eval", *options[:-1], f"test_data.root={root}", "save_overlays=true", taking)
    assert len(list((run.folder / "overlays").rglob("*.png"))) == 5
    assert len(pictures_of(run.folder)) == 6  # what the model saw is known


def test_a_defect_of_one_pixel_has_an_outline(cli: Cli, options: list[str], tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("good/0", "bad/1", "bad/2", "mask/1", "mask/2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((600, 500 + 100 * int(name[-1]), 3), np.uint8)
        if name.startswith("mask"):
            pixels[300, 100] = 255
        Image.fromarray(pixels).save(root / f"{name}.png")
    folders = ["test_data.normal_dir=good", "test_data.anomalous_dir=bad", "test_data.mask_dir=mask"]
    own = ["data@test_data=folder", f"test_data.root={root}", "test_data.eval_size=native", *folders]
    run = cli.ok("eval", *options[1:-1], "model=sdp", *own)
    facts, pictures = facts_of(run.folder), pictures_of(run.folder)
    assert facts["cards"]["data"]["vanished_masks"] == 0
    for case in facts["cases"]:
        outline = pictures[str(case["id"])][2]
        assert outline.startswith("M") if case["label"] else outline == ""
