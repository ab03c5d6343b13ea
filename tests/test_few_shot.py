"""Few-shot from the command line: which references, what is written about them, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from datamodules.errors import UserError
from datamodules.references import given_references
from src import AnomalyDetector
from src.clip.backbone import Backbone
from src.models.method import Features
from src.models.winclip_plus import WinCLIPPlus
from src.run import build
from src.run.merge import merge
from src.scoring import Memory
from src.sweeps import collect
from tests.cli import Cli
from tests.datamodules.helpers import save_image
from tests.golden_baselines import Bench, options_of
from tests.small_clip import PROMPTS
from tests.test_own_images import stop_after


@pytest.fixture
def bench(benches: dict[str, Bench], tmp_path: Path) -> Bench:
    """WinCLIP's golden CLIP; its data set is a copy that a test may change."""
    bench = Bench.__new__(Bench)
    bench.__dict__.update(benches["winclip"].__dict__)
    bench.data = shutil.copytree(bench.data, tmp_path / "own")
    return bench


@pytest.fixture
def options(bench: Bench) -> list[str]:
    return [*bench.backbone, "trainer=cpu", "model=winclip_plus"]


@pytest.fixture
def tested(bench: Bench, options: list[str]) -> list[str]:
    return [*options, f"test_data.root={bench.data}"]


@pytest.fixture
def photos(bench: Bench, options: list[str]) -> list[str]:
    """Predictions of metal nuts with one good one."""
    nut = bench.data / "metal_nut"
    (nut / "train" / "good" / "001.png").unlink()
    return [*options, f"source={nut / 'test'}", "category=metal_nut", f"references={nut / 'train'}"]


@pytest.mark.slow
def test_a_run_says_what_its_references_were(cli: Cli, bench: Bench, tested: list[str]) -> None:
    done = cli.ok("eval", *tested, "shots=1", "reference_seed=5")
    line = "no training (frozen CLIP), 1 reference image a category -> test MVTec AD (6 images of metal_nut, pcb1)"
    assert done.out.splitlines()[0] == done.provenance["protocol"]["line"] == line
    references = done.provenance["references"]
    assert {key: references[key] for key in ("shots", "seed", "replacement")} == {
        "shots": 1,
        "seed": 5,
        "replacement": False,
    }
    for category, files in references["categories"].items():
        assert [Path(one["image_path"]).parent for one in files] == [Path(category, "train", "good")]
    again = cli.ok("eval", *tested, "shots=1", "reference_seed=5", "test_data.categories=[pcb1]", name="again")
    assert again.provenance["references"]["categories"]["pcb1"] == references["categories"]["pcb1"]
    same = [row for row in done.predictions if row["category"] == "pcb1"]
    assert [float(row["single_score"]) for row in again.predictions] == pytest.approx(
        [float(row["single_score"]) for row in same], abs=1e-6
    )


@pytest.mark.slow
def test_all_methods_draw_the_same(cli: Cli, benches: dict[str, Bench]) -> None:
    drawn = []
    for method in ("april_gan_few_shot", "sdp_plus_few_shot"):
        bench, own = options_of(method, benches)
        done = cli.ok("eval", *own, "trainer=cpu", f"test_data.root={bench.data}", "shots=1", name=method)
        drawn.append(done.provenance["references"]["sha256"])
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_a_tested_reference_is_leakage(cli: Cli, bench: Bench, tested: list[str]) -> None:
    reference = bench.data / "pcb1" / "train" / "good" / "000.png"
    shutil.copy(reference, bench.data / "pcb1" / "test" / "good" / "999.png")
    message = cli.error("eval", *tested, "shots=2")
    assert "pcb1/test/good/999.png is the reference image" in message
    assert "allow_leakage=true" in message
    cli.ok("eval", *tested, "shots=2", "allow_leakage=true")


@pytest.mark.slow
def test_references_are_not_calibrated_on(cli: Cli, bench: Bench, options: list[str]) -> None:
    good = bench.data / "metal_nut" / "train"
    own = [*options, f"source={good}", "category=metal_nut", "max_false_alarms=0.5"]
    assert "is the reference image" in cli.error("calibrate", *own, f"references={good}")


@pytest.mark.parametrize(
    ("command", "own", "message"),
    [
        ("eval", [], "model winclip_plus needs reference images: give shots=4"),
        (
            "eval",
            ["model=winclip", "shots=1"],
            "model winclip takes no reference images; leave out shots",
        ),
        ("eval", ["model=sdp", "references=."], "model sdp takes no reference images; leave out references"),
        ("eval", ["shots=3"], "shots=3 takes as many normal images of metal_nut"),
        ("eval", ["shots=-1"], "shots must be 0 or more"),
        (
            "eval",
            ["references=/no/such/folder"],
            "Expected images in references=/no/such/folder, but there is no such file or folder",
        ),
        ("predict", ["shots=1", "source=.", "category=a"], "shots=1 draws from a benchmark's train split"),
        ("predict", ["references=.", "tile=64", "source=.", "category=a"], "tile can't be used with references"),
    ],
)
def test_mistakes_are_told_in_one_line(
    cli: Cli, options: list[str], tested: list[str], command: str, own: list[str], message: str
) -> None:
    if command == "eval" and "references=." in own:
        own = [*own[:1], f"references={tested[-1].partition('=')[2]}/pcb1/train"]
        tested = [*tested, "test_data.categories=[pcb1]"]
    assert message in cli.error(command, *(tested if command == "eval" else options), *own)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_references(
    cli: Cli, bench: Bench, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, batches=0)
        assert cli("predict", *photos).code == 1
    reference = bench.data / "metal_nut" / "train" / "good" / "000.png"
    content = reference.read_bytes()
    shutil.copy(next(bench.data.glob("pcb1/test/good/*.png")), reference)
    assert "other content of references" in cli.error("predict", *photos)
    reference.write_bytes(content)
    moved = reference.parent.rename(bench.data / "good")  # where they lie does not matter
    cli.ok("predict", *photos[:-1], f"references={moved}")


@pytest.mark.slow
def test_parts_with_other_references_are_not_joined(cli: Cli, bench: Bench, tested: list[str], tmp_path: Path) -> None:
    folders = []
    for part in (1, 2):
        given = tmp_path / f"references{part}"
        for name in ("metal_nut", "pcb1"):
            (given / name).mkdir(parents=True)
            shutil.copy(bench.data / name / "train" / "good" / f"00{part - 1}.png", given / name / "0.png")
        run = cli.ok(
            "eval",
            *tested,
            f"references={given}",
            "test_data.batch_size=2",
            f"test_data.shard={part}/2",
            name=str(part),
        )
        folders.append(run.folder)
    with pytest.raises(Exception, match="they differ in the reference images"):
        merge(folders, tmp_path / "merged")


@pytest.mark.slow
def test_a_calibration_belongs_to_its_references(cli: Cli, bench: Bench, photos: list[str]) -> None:
    good = bench.data / "pcb1" / "test" / "broken"  # any images will do
    made = cli.ok("calibrate", *photos, f"source={good}", "max_false_alarms=0.5", name="calibration")
    threshold = f"threshold={made.folder / 'calibration.json'}"
    decided = cli.ok("predict", *photos, threshold)
    assert {row["is_anomalous"] for row in decided.predictions} <= {"0", "1"}
    assert (
        decided.provenance["references"]["sha256"]
        == json.loads((made.folder / "calibration.json").read_text())["belongs_to"]["references"]
    )
    others = [option for option in photos if not option.startswith("references=")]
    message = cli.error("predict", *others, f"references={good}", threshold, name="others")
    assert "belongs to other settings: references" in message


@pytest.mark.slow
def test_the_detector_has_the_commands_references(cli: Cli, bench: Bench, photos: list[str]) -> None:
    done = cli.ok("predict", *photos)
    settings = ("source=", "category=", "~callbacks", "callbacks.", "+trainer.enable")
    own = [option for option in photos if not option.startswith(settings)]
    detector = AnomalyDetector.from_experiment("winclip_plus_mvtec", overrides=own)
    files = [bench.data / "metal_nut" / "test" / row["image_path"] for row in done.predictions]
    scores = [one.single_score for one in detector.predict(files, category="metal_nut")]
    assert scores == pytest.approx([float(row["single_score"]) for row in done.predictions], abs=1e-6)
    with pytest.raises(Exception, match="nothing says which of metal_nut, cup those in"):
        detector.predict(files[:1], category="cup")
    detector.predict(files[:1], category="metal_nut")


@pytest.mark.slow
def test_seeds_of_the_draw_give_a_mean_and_a_deviation(cli: Cli, tested: list[str], tmp_path: Path) -> None:
    cli.ok(
        "eval", "-m", *tested, "shots=1", "reference_seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'study'}", name="study"
    )
    text = collect.collect(tmp_path / "study")
    assert "1 reference image a category" in text
    with (tmp_path / "study" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "mean of 3", "std"]
    scores = [float(row["pixel_AUROC"]) for row in rows]
    assert scores[3] == pytest.approx(sum(scores[:3]) / 3)
    assert len(set(scores[:3])) > 1


@pytest.mark.slow
def test_features_from_the_cache_change_nothing(cli: Cli, tested: list[str]) -> None:
    plain = cli.ok("eval", *tested, "shots=2", name="plain")
    for name in ("filled", "read"):
        cached = cli.ok("eval", *tested, "shots=2", "feature_cache.enabled=true", name=name)
        assert (cached.folder / "predictions.csv").read_bytes() == (plain.folder / "predictions.csv").read_bytes()
    assert cached.provenance["feature_cache"]["test"]["hits"] == 6


def test_many_references_are_computed_in_parts(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(11):
        save_image(tmp_path / f"{number:02}.png", seed=number)
    references = given_references(tmp_path, image_size=32)
    method = WinCLIPPlus(tiny, PROMPTS)
    expected = method.features(references.images_of("cup"))
    rows, compute = [], WinCLIPPlus.features

    def counted(self: WinCLIPPlus, images: torch.Tensor) -> Features:
        rows.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(WinCLIPPlus, "features", counted)
    (found,) = Memory(method, references, torch.float32).of(["cup"], torch.device("cpu"))
    assert rows == [8, 8]  # the last one filled up, and without what fills it
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-5)


def test_held_out_categories_have_no_references(tiny: Backbone) -> None:
    class Trained(WinCLIPPlus):
        def __init__(self) -> None:
            super().__init__(tiny, PROMPTS)
            self.weight = nn.Parameter(torch.ones(()))

    class Masks:
        has_masks = True

    config = OmegaConf.create({"ckpt_path": None, "val_categories": ["cup"]})
    with pytest.raises(
        UserError, match="model winclip_plus needs reference images, which held-out categories have not"
    ):
        build.origin_of(config, Trained(), None, Masks())  # type: ignore[arg-type]
