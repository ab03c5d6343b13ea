"""docs/extending.md: its files, copied out of the checkout, and its commands, run in this process."""

from __future__ import annotations

import csv
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.sweeps import collect
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import ROOT, Golden

LAB = Path(__file__).parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = [path.relative_to(LAB).as_posix() for kind in ("py", "yaml") for path in sorted(LAB.glob(f"*/**/*.{kind}"))]
BLOCK = re.compile(r"^`(\S+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^python -m (\S+) (.*)$", re.MULTILINE)
FEW_PROMPTS = "prompts.templates=['a photo of a {}.']"
METRIC = "image_recall_at_1_percent"


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def draw_pairs(root: Path, side: int, normal: int = 3, anomalous: int = 2) -> None:
    """Two categories of so many images each."""
    noise = np.random.default_rng(0)
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 3, : side // 2] = 255
    for category in ("bolt", "screw"):
        for kind, number in (("ok", normal), ("nok", anomalous)):
            for i in range(number):
                pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
                write_image(root / category / kind / f"{i:03}.png", pixels)
                if kind == "nok":
                    write_image(root / category / "mask" / f"{i:03}.png", mask)


class Lab:
    """A folder as on the page: the package, its configuration, and data."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "me"
        self.outputs = folder / "outputs"
        self.data = folder / "data"
        shutil.copytree(LAB / "my_lab", self.home / "lab" / "my_lab", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(LAB / "conf", self.home / "lab" / "conf")
        draw_pairs(self.data / "pairs", 80)
        shutil.copytree(self.data / "pairs" / "bolt" / "ok", self.home / "images")

    def place(self, argument: str) -> str:
        """An argument of the page with this lab's folders in it."""
        return argument.replace("/home/me", str(self.home)).replace("outputs/", f"{self.outputs}/")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(lab.home / "lab")
        yield lab
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def runs(lab: Lab, golden_a: Golden) -> dict[str, Finished]:
    """All commands of the page, by the folder that each writes to."""
    golden_a.write_mvtec(lab.data / "mvtec")
    quick = [*golden_backbone(golden_a), f"paths.data_dir={lab.data}", FEW_PROMPTS]
    train = ["train_data.num_workers=0", "trainer.max_epochs=2", "optimizer.lr=1e-2"]
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        cli = Cli(patch, None, lab.outputs)
        for module, line in COMMAND.findall(PAGE.replace("\\\n", " ")):
            package, command = module.split(".")
            arguments = [lab.place(argument) for argument in shlex.split(line)]
            with redirect_stdout(io.StringIO()) as out:
                if package == "experiments":
                    assert (command, collect.main(arguments)) == ("collect", 0)
                    continue
                name = re.findall(r"paths\.output_dir=outputs/(\w+)", line)[0]
                more = train if "+exp=probe_pairs" in arguments else []
                run = cli.ok(command, *arguments, *quick, *more, name=name)
            done[name] = run._replace(out=out.getvalue())
    return done


def test_the_page_shows_every_file_as_it_is_run() -> None:
    shown = BLOCK.findall(PAGE)
    assert {name: (LAB / name).read_text(encoding="utf-8") for name, _ in shown} == dict(shown)
    assert sorted(name for name, _ in shown) == sorted(name for name in FILES if not name.endswith("__init__.py"))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_a_file_has_40_lines_at_most(name: str) -> None:
    assert len((LAB / name).read_text(encoding="utf-8").splitlines()) <= 40


def test_the_package_is_found_outside_the_checkout(lab: Lab, runs: dict[str, Finished]) -> None:
    assert set(runs) == {"likeness", "probe", "again", "bolts", "seeds"}
    loaded = {Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith("my_lab.")}
    assert {path.parent for path in loaded} == {lab.home / "lab" / "my_lab"}
    assert {path.stem for path in loaded} == {"likeness", "probe", "pairs", "recall", "weak", "worst"}
    assert ROOT not in lab.home.parents


def test_the_method_that_trains_nothing(runs: dict[str, Finished]) -> None:
    run = runs["likeness"]
    assert run.out.splitlines()[0] == "no training (frozen CLIP) -> test Pairs (10 images)"
    rows = run.predictions
    assert list(rows[0])[3:] == ["cls_score", "map_max", "image_score", "single_score"]
    for row in rows:
        assert float(row["single_score"]) == pytest.approx(float(row["cls_score"]) + float(row["map_max"]), abs=1e-6)
    assert len({row["map_max"] for row in rows}) == 10  # the images, not only their categories, are scored


def test_the_method_that_trains(runs: dict[str, Finished]) -> None:
    trained, again = runs["probe"], runs["again"]
    assert (trained.folder / "probe.trained_on_mvtec.safetensors").is_file()
    losses = [row["train/loss_epoch"] for row in csv_rows(trained.folder / "csv" / "version_0" / "metrics.csv")]
    first, last = [float(loss) for loss in losses if loss]
    assert last < first
    # Its weights tested again are what was tested after the training.
    assert again.metrics == trained.metrics
    assert again.out.splitlines()[0] == "train MVTec AD (test split, 6 images) -> test Pairs (10 images)"
    # `single` fuses nothing: the image score is the image's own.
    assert list(again.predictions[0])[3:] == ["map_max", "image_score", "single_score"]
    assert all(float(row["image_score"]) == float(row["single_score"]) for row in again.predictions)


def test_the_data_set(runs: dict[str, Finished]) -> None:
    rows = runs["likeness"].predictions
    assert [row["category"] for row in rows] == ["bolt"] * 5 + ["screw"] * 5
    assert [row["label"] for row in rows] == ["0", "0", "0", "1", "1"] * 2
    assert rows[3]["image_path"] == "bolt/nok/000.png"
    assert set(runs["likeness"].metrics["mean"]) >= {"image_AUROC", "pixel_AUROC", "pixel_AUPRO"}


def test_the_metric_is_in_the_results_the_table_and_the_log(runs: dict[str, Finished]) -> None:
    for name in ("likeness", "probe"):
        run = runs[name]
        recalls = []
        for category in ("bolt", "screw"):
            rows = [row for row in run.predictions if row["category"] == category]
            normal = max(float(row["image_score"]) for row in rows if row["label"] == "0")
            found = [float(row["image_score"]) > normal for row in rows if row["label"] == "1"]
            recalls.append(sum(found) / len(found))
            assert run.metrics["categories"][category][METRIC] == pytest.approx(recalls[-1])
        assert run.metrics["mean"][METRIC] == pytest.approx(sum(recalls) / 2)
        assert METRIC in run.out
        logged = [row[f"test/{METRIC}"] for row in csv_rows(run.folder / "csv" / "version_0" / "metrics.csv")]
        assert [float(value) for value in logged if value] == pytest.approx([sum(recalls) / 2])


def test_the_callback_gets_the_results(runs: dict[str, Finished]) -> None:
    for name in ("likeness", "probe", "again"):
        categories = runs[name].metrics["categories"]
        weak = [category for category, values in categories.items() if values["pixel_AUROC"] < 0.9]
        assert weak  # on noise
        assert (runs[name].folder / "weak.txt").read_text().splitlines() == weak
    assert not (runs["bolts"].folder / "weak.txt").exists()


def test_the_callback_sees_the_images(lab: Lab, runs: dict[str, Finished]) -> None:
    folder = runs["likeness"].folder
    assert sorted(path.name for path in (folder / "worst").iterdir()) == [
        "bolt.jpg",
        "bolt.png",
        "screw.jpg",
        "screw.png",
    ]
    for category in ("bolt", "screw"):
        seen = Image.open(folder / "worst" / f"{category}.jpg")
        files = sorted((lab.data / "pairs" / category / "nok").iterdir()) + sorted(
            lab.data.glob(f"pairs/{category}/ok/*")
        )
        images = [np.asarray(Image.open(file).resize(seen.size, Image.Resampling.BICUBIC)).ravel() for file in files]
        likest = np.argmax([np.corrcoef(np.asarray(seen).ravel(), image)[0, 1] for image in images])
        assert files[likest].parent.name == "nok"
    assert not list(folder.glob(".*.tmp"))  # what was kept of the images is gone


def test_a_prediction(runs: dict[str, Finished]) -> None:
    run = runs["bolts"]
    assert [row["image_path"] for row in run.predictions] == ["000.png", "001.png", "002.png"]
    assert {row["category"] for row in run.predictions} == {"bolt"}
    # The same images as in the test; what a test fuses over the category is not there.
    tested = [row["single_score"] for row in runs["likeness"].predictions[:3]]
    assert [float(row["single_score"]) for row in run.predictions] == pytest.approx([*map(float, tested)], abs=1e-5)


def test_a_sweep(runs: dict[str, Finished]) -> None:
    sweep = runs["seeds"].folder
    for trial in ("0", "1"):
        assert (sweep / trial / "probe.trained_on_mvtec.safetensors").is_file()
        assert (sweep / trial / "weak.txt").is_file()
    table = csv_rows(sweep / "trials.csv")
    assert [row["seed"] for row in table[:2]] == ["1", "2"]
    assert all(row[METRIC] for row in table[:2])


def test_what_the_class_does_not_take_is_refused(lab: Lab, cli: Cli, golden_a: Golden) -> None:
    options = ["--config-dir", f"{lab.home}/lab/conf", *golden_backbone(golden_a), f"paths.data_dir={lab.data}"]
    line = cli.error("eval", *options, "data@test_data=pairs", "model=likeness", "+model.smoothing=2")
    assert line == (
        "unknown configuration key 'model.smoothing', which my_lab.likeness.Likeness does not take; "
        "did you mean 'model.smoothing_sigma'?"
    )
    assert "my_lab" in cli.error("eval", *options, "data@test_data=pairs", "model._target_=my_lab.likeness.Likenes")


@pytest.mark.slow
@pytest.mark.parametrize("options", [["model=sdp", "model.representative=mean"], ["model=likeness"]])
def test_a_larger_clip_fits_every_method(options: list[str], lab: Lab, cli: Cli, tmp_path: Path) -> None:
    """ViT-L-14-336 with random weights, on one batch: its YAML sets nothing of a model."""
    draw_pairs(tmp_path / "pairs", 48, normal=1, anomalous=1)
    run = cli.ok(
        *("eval", "--config-dir", f"{lab.home}/lab/conf", *options, "data@test_data=pairs"),
        *("backbone=vit_l_14_336", "backbone.pretrained=null", FEW_PROMPTS, "test_data.categories=[bolt]"),
        *(f"paths.data_dir={tmp_path}", "test_data.batch_size=2", "test_data.num_workers=0", "trainer=cpu"),
        *("~callbacks.progress", "+trainer.enable_progress_bar=false"),
    )
    assert len(run.predictions) == 2
    assert set(run.metrics["categories"]["bolt"]) >= {"image_AUROC", "pixel_AUROC"}
    assert "ViT-L-14-336" in str(run.provenance["backbone"])


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
