"""`src.predict` on own images: the maps of a test, tiles, what can't be read, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.run.journal import Journal
from src.run.merge import merge
from tests.cli import NO_REPORT, Cli, Finished, golden_backbone
from tests.golden_reference import Golden

RANDOM = np.random.default_rng(0)
OPEN_PAGE = "callbacks.report={_target_: src.callbacks.report.Report, max_images: 2000}"


def draw(folder: Path, count: int, size: tuple[int, int] = (40, 32)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def maps_of(run: Finished) -> dict[str, np.ndarray]:
    return {row["image_path"]: np.load(run.folder / row["map"]) for row in run.predictions}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two categories, seven photos."""
    draw(tmp_path / "photos" / "cup", 4)
    draw(tmp_path / "photos" / "metal nut", 3)
    return tmp_path / "photos"


def test_maps_and_scores_are_those_of_a_test(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    draw(tmp_path / "cups" / "good", 5)
    draw(tmp_path / "cups" / "bad", 2)
    folder = [f"test_data.root={tmp_path / 'cups'}", "test_data.normal_dir=good", "test_data.anomalous_dir=bad"]
    common = [*golden_backbone(golden_a), "save_maps=true"]
    tested = cli.ok("eval", "data@test_data=folder", *folder, "test_data.category=cup", *common, name="tested")
    predicted = cli.ok("predict", f"source={tmp_path / 'cups'}", "category=cup", *common, name="predicted")
    expected, found = maps_of(tested), maps_of(predicted)
    assert len(found) == 7
    for name, one in found.items():
        np.testing.assert_allclose(one, expected[name], rtol=0, atol=1e-6)
    scores = {row["image_path"]: float(row["single_score"]) for row in tested.predictions}
    assert all(abs(float(row["single_score"]) - scores[row["image_path"]]) < 1e-6 for row in predicted.predictions)


@pytest.mark.slow
def test_the_experiments_prompts_count_for_photos_too(cli: Cli, golden_a: Golden, photos: Path) -> None:
    """VisA's DBSCAN takes all sentences, others' does not: photos of an experiment on VisA are scored as VisA is."""
    common = [*golden_backbone(golden_a), f"source={photos}", "category=cup", "model.representative=dbscan"]
    common.append("model.dbscan={default: {eps: 1.5, min_samples: 1}, visa: {eps: 0.000001, min_samples: 1}}")
    visa = cli.ok("predict", "data@test_data=visa", *common, name="visa")
    other = cli.ok("predict", "data@test_data=mvtec", *common, name="mvtec")
    assert [row["single_score"] for row in visa.predictions] != [row["single_score"] for row in other.predictions]


@pytest.mark.slow
def test_an_image_of_one_tile_is_as_without_tiles(cli: Cli, golden_a: Golden, photos: Path) -> None:
    common = [*golden_backbone(golden_a), f"source={photos}", "save_maps=true"]
    plain = cli.ok("predict", *common, name="plain")
    tiled = cli.ok("predict", *common, "tile=40", name="tiled")
    for name, one in maps_of(plain).items():
        np.testing.assert_allclose(maps_of(tiled)[name], one, rtol=0, atol=1e-6)
    keys = ("single_score", "cls_score", "map_max")
    for a, b in zip(plain.predictions, tiled.predictions, strict=True):
        assert all(abs(float(a[key]) - float(b[key])) < 1e-6 for key in keys)


@pytest.mark.slow
def test_tiles_are_scored_as_images_of_their_own(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    """Without overlap the map of two tiles is that of its halves, side by side; the score is the whole image's."""
    large = draw(tmp_path / "large", 1, size=(64, 32))
    image = Image.open(large / "000.png")
    for number, left in enumerate((0, 32)):
        (tmp_path / "halves").mkdir(exist_ok=True)
        image.crop((left, 0, left + 32, 32)).save(tmp_path / "halves" / f"{number}.png")
    common = [*golden_backbone(golden_a), "category=cup", "save_maps=true", "save_overlays=true"]
    whole = cli.ok("predict", *common, f"source={large}", name="whole")
    tiled = cli.ok("predict", *common, f"source={large}", "tile=32", "overlap=0", name="tiled")
    halves = cli.ok("predict", *common, f"source={tmp_path / 'halves'}", name="halves")
    expected = np.concatenate(list(maps_of(halves).values()), axis=1)
    np.testing.assert_allclose(maps_of(tiled)["000.png"], expected, rtol=0, atol=1e-6)
    assert float(tiled.predictions[0]["single_score"]) == pytest.approx(
        float(whole.predictions[0]["single_score"]), abs=1e-6
    )
    assert Image.open(tiled.folder / tiled.predictions[0]["overlay"]).size == (64, 32)


def test_overlays_lie_on_photos_as_people_see_them(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :8] = 255  # stored: a white bar at the left; seen: at the top
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png", exif=exif)
    done = cli.ok(
        "predict", *golden_backbone(golden_a), f"source={tmp_path / 'photos'}", "save_overlays=true", "category=bar"
    )
    overlay = np.asarray(Image.open(done.folder / done.predictions[0]["overlay"]).convert("L")).astype(float)
    assert overlay.shape == (40, 20)
    assert overlay[:8].mean() > overlay[8:].mean() + 50


def test_the_run_goes_on_without_what_cannot_be_read(cli: Cli, golden_a: Golden, photos: Path) -> None:
    (photos / "cup" / "broken.png").write_text("no image")
    (photos / "cup" / "phone.heic").write_bytes(b"x")
    (photos / "cup" / "000.jpg").write_text("no image, and named like one")
    (photos / "cup" / "broken.png").unlink()
    done = cli("predict", *golden_backbone(golden_a), f"source={photos}", OPEN_PAGE, "save_overlays=true")
    assert all((done.folder / row["overlay"]).is_file() for row in done.predictions)
    assert done.code == 1
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "2 images can't be read and have no scores" in lines[0]
    assert len(done.predictions) == 7
    assert done.provenance["finished"]
    assert (
        sorted(Path(line.split(":")[0].split()[-1]).name for line in done.provenance["unreadable"])[-1] == "phone.heic"
    )
    assert (done.folder / "report.html").is_file()


def test_nothing_that_can_be_read(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    error = cli.error("predict", *golden_backbone(golden_a), f"source={tmp_path / 'photos'}", "category=cup")
    assert error.startswith("none of 1 images can be read, such as: Expected a readable image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected images in source=PATH"),
        (["category=cup"], "category and tile are of the images in source=PATH, which is missing"),
        (["source=/nothing/there"], "Expected images in source=/nothing/there, but there is no such file or folder"),
        (["source=/tmp", "tile=3"], "Expected tile to be null or a number of pixels, 16 or more, but got 3"),
    ],
)
def test_mistakes_are_told_in_one_line(cli: Cli, golden_a: Golden, options: list[str], message: str) -> None:
    assert message in cli.error("predict", *golden_backbone(golden_a), *options)


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """End the run by an error in the middle of a batch's row, as a full disk or a kill may."""
    append, count = Journal.append, [0]

    def broken(self: Journal, rows: list[list[str]], rank: int) -> None:
        count[0] += 1
        if count[0] > batches:
            with self.path.open("a") as file:
                file.write(",".join(rows[0])[:10])
            raise OSError(28, "No space left on device", str(self.path))
        append(self, rows, rank)

    monkeypatch.setattr(Journal, "append", broken)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(
    cli: Cli, golden_a: Golden, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*golden_backbone(golden_a), f"source={photos}", "save_maps=true", "save_overlays=true", OPEN_PAGE]
    options.append("test_data.batch_size=2")
    whole = cli.ok("predict", *options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, batches=2)
        stopped = cli("predict", *options, name="stopped")
    assert stopped.code == 1
    assert len((stopped.folder / "predictions.csv").read_text().splitlines()) == 6  # header, 4 rows, a torn one
    done = cli.ok("predict", *options, name="stopped")
    assert "4 of 7 images are done already" in done.out
    for file in (
        "predictions.csv",
        *(row["map"] for row in whole.predictions),
        *(r["overlay"] for r in whole.predictions),
    ):
        assert (done.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert not list(done.folder.glob("cases*"))
    pages = [(run.folder / "report.html").read_text() for run in (whole, done)]
    assert pages[0].count("data:image") == pages[1].count("data:image")
    assert all(name in pages[1] for name in ("cup/000.png", "metal nut/002.png"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["a map", "the recorded pictures"])
def test_what_was_lost_in_between_is_done_again(
    cli: Cli, golden_a: Golden, photos: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    options = [*golden_backbone(golden_a), f"source={photos}", "save_maps=true", "test_data.batch_size=2", OPEN_PAGE]
    whole = cli.ok("predict", *options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, batches=2)
        stopped = cli("predict", *options, name="stopped")
    if lost == "a map":
        (stopped.folder / whole.predictions[1]["map"]).unlink()
    else:
        (file,) = stopped.folder.glob("cases*.sqlite")
        file.write_bytes(file.read_bytes()[:5000])
    done = cli.ok("predict", *options, name="stopped")
    assert f"{3 if lost == 'a map' else 0} of 7 images are done already" in done.out
    assert (done.folder / "predictions.csv").read_bytes() == (whole.folder / "predictions.csv").read_bytes()
    assert (done.folder / whole.predictions[1]["map"]).is_file()


@pytest.mark.slow
def test_a_killed_run_goes_on(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    source = draw(tmp_path / "many", 400)
    options = [*golden_backbone(golden_a), f"source={source}", "category=cup", "test_data.batch_size=2", OPEN_PAGE]
    whole = cli.ok("predict", *options, name="whole")
    killed = tmp_path / "killed"
    places = [f"paths.output_dir={killed}", f"paths.cache_dir={tmp_path / 'cache'}"]
    process = subprocess.Popen([sys.executable, "-m", "src.predict", *options, *places], stdout=subprocess.DEVNULL)
    table, end = killed / "predictions.csv", time.monotonic() + 120
    while not table.is_file() or len(table.read_bytes().splitlines()) < 20:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(table.read_bytes().splitlines()) < 400
    done = cli.ok("predict", *options, name="killed")
    assert table.read_bytes() == (whole.folder / "predictions.csv").read_bytes()
    assert " of 400 images are done already" in done.out
    assert (killed / "report.html").read_text().count("000.png") == (whole.folder / "report.html").read_text().count(
        "000.png"
    )


@pytest.mark.slow
def test_two_processes_write_what_one_does(cli: Cli, golden_a: Golden, photos: Path) -> None:
    (photos / "cup" / "broken.png").write_text("no image")
    options = [*golden_backbone(golden_a), f"source={photos}", "save_overlays=true", "test_data.batch_size=2"]
    one = cli("predict", *options, name="one")
    two = [
        f"paths.output_dir={cli.folder / 'two'}",
        f"paths.cache_dir={cli.folder / 'cache'}",
        "trainer.devices=2",
        "+trainer.strategy=ddp",
    ]
    done = subprocess.run([sys.executable, "-m", "src.predict", *options, *two], capture_output=True, text=True)
    assert done.returncode == one.code == 1, done.stderr
    assert (cli.folder / "two" / "predictions.csv").read_bytes() == (one.folder / "predictions.csv").read_bytes()
    assert sorted(path.name for path in (cli.folder / "two").glob("*")) == sorted(p.name for p in one.folder.glob("*"))


@pytest.mark.slow
def test_parts_of_a_prediction_with_decisions_are_the_whole(
    cli: Cli, golden_a: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, photos = draw(tmp_path / "good", 9), draw(tmp_path / "photos", 8)
    common = [*golden_backbone(golden_a), "category=cup", "test_data.batch_size=2", OPEN_PAGE]
    made = cli.ok("calibrate", *common, f"source={good}", "max_false_alarms=0.5", name="calibration")
    options = [*common, f"source={photos}", f"threshold={made.folder / 'calibration.json'}", "save_overlays=true"]
    whole = cli.ok("predict", *options, name="whole").folder
    parts = [cli.ok("predict", *options, f"test_data.shard={n}/2", name=str(n)).folder for n in (1, 2)]
    merge(parts, tmp_path / "merged")
    rows = (whole / "regions.csv").read_text().splitlines()
    assert len(rows) > 2
    overlays = [path.relative_to(whole).as_posix() for path in (whole / "overlays").rglob("*.png")]
    assert len(overlays) == 8
    for file in ("predictions.csv", "regions.csv", "regions.coco.json", *overlays):
        assert (tmp_path / "merged" / file).read_bytes() == (whole / file).read_bytes(), file
    assert "regions.csv" in json.loads((tmp_path / "merged" / "provenance.json").read_text())["files"]

    # Without what a page is made of, COCO's form misses the images' sizes; the regions are there all the same.
    plain = [*options[:-1], NO_REPORT]
    parts = [cli.ok("predict", *plain, f"test_data.shard={n}/2", name=f"plain{n}").folder for n in (1, 2)]
    with pytest.warns(UserWarning, match=r"no regions\.coco\.json: .*cases\.sqlite"):
        merge(parts, tmp_path / "plain")
    assert (tmp_path / "plain" / "regions.csv").read_bytes() == (whole / "regions.csv").read_bytes()


@pytest.mark.slow
def test_copies_do_not_count_as_images_without_a_word(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    good = draw(tmp_path / "good", 4)
    for number in range(4):
        (good / f"copy{number}.png").write_bytes((good / "000.png").read_bytes())
    options = [*golden_backbone(golden_a), f"source={good}", "category=cup", "max_false_alarms=0.2"]
    with pytest.warns(UserWarning, match="4 of 8 images are copies of others"):
        cli.ok("calibrate", *options)
