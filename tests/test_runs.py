"""Runs on the golden images and on real ones: what they do, what they leave, what they refuse."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from torch._inductor.exc import InvalidCxxCompiler

from src.clip.backbone import Backbone, BackboneSource
from src.config import shortcuts
from src.models.dual_path import run_both_paths
from src.models.sdp_plus import SDPPlus
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import Golden

# A twentieth of the sentences: these tests are not about the text.
FEW_PROMPTS = ["prompts.templates=['a photo of a {}.']", "model.representative=mean"]
METRICS = ("image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO")


@pytest.fixture(scope="session")
def two_data_sets(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden images as a small MVTec, and beside it a plain folder `own` of three of them."""
    root = tmp_path_factory.mktemp("data")
    mvtec = golden_a.write_mvtec(root / "mvtec")
    (root / "own").mkdir()
    for path in sorted(mvtec.glob("candle/test/*/*.png")):
        (root / "own" / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture
def options(golden_a: Golden, two_data_sets: Path) -> list[str]:
    return [*golden_backbone(golden_a), *FEW_PROMPTS, f"paths.data_dir={two_data_sets}"]


TRAIN_ON_PCB = ["data@train_data=mvtec", "train_data.categories=[pcb1]", "train_data.num_workers=0"]
TEST_CANDLE = ["test_data.categories=[candle]", "model=sdp_plus"]


class Towers:
    """Every backbone that the runs of a test build, with a copy of its weights as they were loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[tuple[Backbone, dict[str, torch.Tensor]]] = []
        build = Backbone.__init__

        def build_and_keep(backbone: Backbone, source: BackboneSource, *options: Any) -> None:
            build(backbone, source, *options)
            self.loaded.append((backbone, {name: value.clone() for name, value in backbone.state_dict().items()}))

        monkeypatch.setattr(Backbone, "__init__", build_and_keep)

    def are_untouched(self) -> bool:
        assert self.loaded
        return all(
            torch.equal(backbone.state_dict()[name], value)
            for backbone, state in self.loaded
            for name, value in state.items()
        )


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> Towers:
    return Towers(monkeypatch)


def losses(run: Finished) -> list[float]:
    """The mean loss of each epoch."""
    with next(run.folder.glob("csv/version_*/metrics.csv")).open(newline="") as file:
        return [float(row["train/loss_epoch"]) for row in csv.DictReader(file) if row.get("train/loss_epoch")]


def test_what_an_evaluation_leaves(cli: Cli, options: list[str], golden_a: Golden) -> None:
    run = cli.ok("eval", "+exp=sdp_mvtec", *options)
    assert {path.name for path in run.folder.glob("[!.]*")} == {
        "metrics.json",
        "curves.json",
        "predictions.csv",
        "provenance.json",
        "csv",
    }
    assert set(run.metrics["categories"]) == {"candle", "pcb1"}
    for name in METRICS:
        values = [category[name] for category in run.metrics["categories"].values()]
        assert run.metrics["mean"][name] == pytest.approx(sum(values) / 2)
        assert all(0 <= value <= 1 for value in values)
    assert len(run.predictions) == 6
    provenance = run.provenance
    assert provenance["seed"] == 42
    assert provenance["config"]["model"]["feature_layers"] is None  # by depth
    assert provenance["data"]["test"]["categories"]["candle"]["images"] == 3
    assert len(provenance["backbone"]["sha256"]) == 64
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["protocol"]["trained_on"] is None
    assert provenance["finished"]
    for category in ("candle", "pcb1"):
        assert f"│ {category}" in run.out


def test_sentences_are_encoded_once_for_all_runs(
    cli: Cli, options: list[str], golden_a: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = cli.ok("eval", "+exp=sdp_mvtec", *options, name="cold")
    monkeypatch.setattr("src.clip.backbone.encode_tokens", None)  # the tower can't be asked any more
    warm = cli.ok("eval", "+exp=sdp_mvtec", *options, "trainer.precision=32-true", name="warm")
    assert warm.metrics == cold.metrics
    assert warm.predictions == cold.predictions
    with pytest.raises(TypeError):  # random weights are new in each run
        cli("eval", "+exp=sdp_mvtec", *options, "backbone.pretrained=null", name="random")


def test_compiling_is_asked_for_by_the_backbone(cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    cli.ok("eval", "+exp=sdp_mvtec", *options, name="eager")
    assert compiled == []
    cli.ok("eval", "+exp=sdp_mvtec", *options, "backbone.compile=true", name="compiled")
    assert compiled == [run_both_paths]


def test_without_a_compiler_compiling_ends_in_one_line(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    message = cli.error("eval", "+exp=sdp_mvtec", *options, "backbone.compile=true")
    assert message.startswith("torch.compile: ")
    assert "backbone.compile=false" in message


def test_the_profiler_prints_where_the_time_goes(cli: Cli, options: list[str]) -> None:
    run = cli.ok("eval", "+exp=sdp_mvtec", *options, "trainer.profiler=simple")
    assert "AnomalyModule.on_test_start" in run.out


def test_a_finished_run_is_not_overwritten(cli: Cli, options: list[str]) -> None:
    run = cli.ok("eval", "+exp=sdp_mvtec", *options)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert "holds a finished run" in cli.error("eval", "+exp=sdp_mvtec", *options)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_training_and_evaluation_agree(cli: Cli, options: list[str], golden_a: Golden) -> None:
    trained = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=8", "optimizer.lr=1e-3")
    falling = losses(trained)
    assert len(falling) == 8
    assert falling[-1] < 0.8 * falling[0]
    assert trained.out.startswith(
        "train MVTec AD (test split, 3 images of pcb1) -> test MVTec AD (3 images of candle)\n"
    )

    projections = trained.folder / "sdp_plus.trained_on_mvtec.safetensors"
    with safe_open(projections, framework="pt") as file:
        origin = json.loads(file.metadata()["origin"])
    assert origin["trained_on"]["categories"] == ["pcb1"]
    assert origin["epochs"] == 8
    for name, checkpoint in (("last", trained.folder / "checkpoints" / "last.ckpt"), ("projections", projections)):
        tested = cli.ok("eval", *options, *TEST_CANDLE, f"ckpt_path={checkpoint}", name=name)
        assert tested.metrics == trained.metrics
        assert tested.predictions == trained.predictions
        assert tested.provenance["protocol"]["trained_on"]["categories"] == ["pcb1"]


def test_training_leaves_the_tower_alone(cli: Cli, options: list[str], towers: Towers) -> None:
    run = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=2")
    assert towers.are_untouched()
    saved = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"method.projections.fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}


@pytest.mark.slow
def test_one_seed_gives_one_result(cli: Cli, options: list[str]) -> None:
    train = [*options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=2", "train_data.transforms=augment"]
    first, again, other = (
        cli.ok("train", *train, f"seed={seed}", name=name) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert (first.folder / "metrics.json").read_bytes() == (again.folder / "metrics.json").read_bytes()
    assert first.predictions == again.predictions
    assert first.predictions != other.predictions


def test_leakage_is_refused_unless_allowed(cli: Cli, options: list[str]) -> None:
    leaking = [*options, "model=sdp_plus", *TRAIN_ON_PCB, "trainer.max_epochs=1"]
    message = cli.error("train", *leaking)
    assert "pcb1" in message
    assert "allow_leakage=true" in message
    allowed = cli.ok("train", *leaking, "allow_leakage=true", name="allowed")
    assert allowed.provenance["protocol"]["leaked_categories"] == ["pcb1"]
    checkpoint = f"ckpt_path={allowed.folder / 'checkpoints' / 'last.ckpt'}"
    assert "pcb1" in cli.error("eval", *options, "model=sdp_plus", checkpoint, name="later")


@pytest.mark.slow
def test_held_out_categories_select_the_epoch(
    cli: Cli, options: list[str], two_data_sets: Path, tmp_path: Path
) -> None:
    benchmark = tmp_path / "benchmark"
    source = two_data_sets / "mvtec" / "candle"
    for path in source.rglob("*.png"):
        copy = benchmark / "bottle" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    train = [*options, "model=sdp_plus", f"test_data.root={benchmark}", "data@train_data=mvtec", "optimizer.lr=3e-3"]
    run = cli.ok(
        "train",
        *train,
        "train_data.num_workers=0",
        "val_categories=[candle]",
        "select=pixel_AP",
        "trainer.max_epochs=4",
        "allow_leakage=true",
    )
    with next(run.folder.glob("csv/version_*/metrics.csv")).open(newline="") as file:
        scores = [float(row["val/pixel_AP"]) for row in csv.DictReader(file) if row.get("val/pixel_AP")]
    assert len(scores) == 4
    trained = run.provenance["trained_weights"]
    assert trained["selected_by"] == "pixel_AP"
    assert trained["epochs"] == 1 + max(range(4), key=lambda epoch: scores[epoch])
    assert run.provenance["protocol"]["trained_on"]["held_out"] == ["candle"]
    assert run.provenance["protocol"]["trained_on"]["images"] == 3
    assert "val_categories" in cli.error("train", *train, "select=pixel_AP", name="nothing_held_out")
    assert "pixel_AUPRO" in cli.error("train", *train, "val_categories=[candle]", "select=auroc", name="no_metric")


def cut_in_epoch(cli: Cli, monkeypatch: pytest.MonkeyPatch, epoch: int, *overrides: str) -> Path:
    """The folder of a run that stops in an epoch (counted from 1) of training on one batch an epoch."""
    loss, calls = SDPPlus.loss, []

    def power_cut(self: SDPPlus, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == epoch:
            raise RuntimeError("power cut")
        return loss(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SDPPlus, "loss", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            cli("train", *overrides, name="cut")
    return cli.folder / "cut"


@pytest.mark.slow
@pytest.mark.parametrize("order", [[], ["train_data.shuffle=true", "train_data.transforms=augment"]])
def test_an_unfinished_run_is_resumed(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    train = [*options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=4", "optimizer.lr=1e-2", *order]
    whole = cli.ok("train", *train, name="whole")
    folder = cut_in_epoch(cli, monkeypatch, 3, *train)
    done = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (done["epoch"], done["origin"]["epochs"]) == (1, 2)

    assert "seed" in cli.error("train", *train, "seed=1", name="cut")
    resumed = cli.ok("train", *train, name="cut")
    assert losses(resumed) == losses(whole)  # in one table, of both parts
    assert resumed.metrics == whole.metrics
    assert resumed.predictions == whole.predictions
    assert [set(part) >= {"time", "command", "packages"} for part in resumed.provenance["resumed"]] == [True]
    assert resumed.provenance["trained_weights"] == whole.provenance["trained_weights"]


@pytest.mark.slow
def test_a_resumed_run_selects_as_if_it_had_not_stopped(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = ["data@train_data=mvtec", "train_data.num_workers=0", "val_categories=[candle]", "select=pixel_AUROC"]
    train = [*options, *TEST_CANDLE, *held_out, "trainer.max_epochs=4", "optimizer.lr=3e-2", "allow_leakage=true"]
    whole = cli.ok("train", *train, name="whole")
    folder = cut_in_epoch(cli, monkeypatch, 3, *train)
    states = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    selection = next(state for name, state in states.items() if "val/pixel_AUROC" in name)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["origin"]["epochs"]
    with (folder / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        scores = [float(row["val/pixel_AUROC"]) for row in csv.DictReader(file) if row.get("val/pixel_AUROC")]
    assert float(selection["best_model_score"]) == pytest.approx(scores[best - 1])
    resumed = cli.ok("train", *train, name="cut")
    assert resumed.provenance["trained_weights"] == whole.provenance["trained_weights"]
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_data_only(
    cli: Cli, options: list[str], two_data_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [*options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=2"]
    cut_in_epoch(cli, monkeypatch, 2, *train)
    moved = tmp_path / "moved"
    shutil.copytree(two_data_sets, moved)
    image = next((moved / "mvtec" / "candle" / "test").rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"\0")
    assert "data.test" in cli.error("train", *train, f"paths.data_dir={moved}", name="cut")
    image.write_bytes(image.read_bytes()[:-1])
    cli.ok("train", *train, f"paths.data_dir={moved}", name="cut")


def test_a_callback_of_the_user_selects_nothing(cli: Cli, options: list[str], tmp_path: Path) -> None:
    own = [
        "+callbacks.own._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        f"+callbacks.own.dirpath={tmp_path / 'own'}",
        "+callbacks.own.monitor=train/loss_epoch",
        "+callbacks.own.mode=max",
    ]
    run = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=3", *own)
    assert run.provenance["trained_weights"]["epochs"] == 3


@pytest.mark.slow
def test_a_run_that_is_cut_short_says_so(cli: Cli, options: list[str]) -> None:
    short = ["+trainer.limit_test_batches=1", "test_data.batch_size=2"]
    run = cli.ok("eval", *options, "+exp=sdp_mvtec", *short)
    assert len(run.predictions) == 2
    assert run.out.splitlines()[0].endswith("(6 images), cut short by limit_test_batches=1")
    assert run.provenance["protocol"]["cut_short_by"] == ["limit_test_batches=1"]
    dry = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, "+trainer.fast_dev_run=true", name="dry")
    assert "cut short by fast_dev_run=True" in dry.out.splitlines()[0]


@pytest.mark.slow
def test_weights_remember_that_their_training_was_cut_short(cli: Cli, options: list[str]) -> None:
    short = ["+trainer.limit_train_batches=1", "+trainer.limit_test_batches=1", "trainer.max_epochs=1"]
    trained = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, *short, name="trained")
    assert trained.provenance["protocol"]["cut_short_by"] == ["limit_train_batches=1", "limit_test_batches=1"]
    weights = trained.folder / "sdp_plus.trained_on_mvtec.safetensors"
    tested = cli.ok("eval", *options, *TEST_CANDLE, "model=sdp_plus", f"ckpt_path={weights}")
    protocol = tested.provenance["protocol"]
    assert protocol["cut_short_by"] == []
    assert protocol["training_cut_short_by"] == ["limit_train_batches=1"]
    assert "images of pcb1, cut short by limit_train_batches=1) -> test" in protocol["line"]


@pytest.mark.slow
def test_weights_that_were_trained_with_other_settings_are_warned_of(
    cli: Cli, options: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    trained = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, "trainer.max_epochs=1", "test=false").folder
    weights = f"ckpt_path={next(trained.glob('*.safetensors'))}"
    for name, others, told in (
        ("same", [], []),
        ("prompts", ["prompts.templates=['a {}.']"], ["prompts.templates"]),
        ("both", ["model.smoothing_sigma=4", "model.representative=pca"], ["model.representative and model.smoothing"]),
    ):
        recwarn.clear()
        cli.ok("eval", *options, *TEST_CANDLE, *others, weights, name=name)
        found = [str(one.message) for one in recwarn if "was trained with" in str(one.message)]
        assert len(found) == len(told)
        assert all(f"was trained with another {one}" in text for one, text in zip(told, found, strict=True))


@pytest.mark.parametrize(
    "whole", ["limit_test_batches=1.0", "fast_dev_run=false", "max_steps=-1", "max_time=null", "overfit_batches=0.0"]
)
def test_settings_that_cut_nothing_short(whole: str) -> None:
    key = whole.partition("=")[0]
    assert shortcuts(OmegaConf.from_dotlist([whole])) == []
    assert shortcuts(OmegaConf.create({key: 1})) == [f"{key}=1"]


def test_the_same_images_under_another_name_leak(cli: Cli, options: list[str], two_data_sets: Path) -> None:
    pcb = two_data_sets / "mvtec" / "pcb1"
    folder = ["data@train_data=folder", f"train_data.root={pcb}", "train_data.anomalous_dir=test/broken"]
    masks = ["train_data.mask_dir=ground_truth/broken", "train_data.num_workers=0"]
    message = cli.error("train", *options, "model=sdp_plus", *folder, *masks)
    assert "pcb1" in message
    assert "allow_leakage" in message


def test_predict_needs_no_labels(cli: Cli, options: list[str], two_data_sets: Path) -> None:
    own = [f"test_data.root={two_data_sets / 'own'}", "test_data.category=candle"]
    run = cli.ok("predict", *options, *own, "save_maps=true")
    assert not (run.folder / "metrics.json").exists()
    assert [row["label"] for row in run.predictions] == ["", "", ""]
    for row in run.predictions:
        assert row["image_score"] == ""  # the benchmark's rule needs all images of the category
        assert float(row["single_score"]) == pytest.approx(float(row["cls_score"]) + float(row["map_max"]), rel=1e-6)
        assert (run.folder / "maps" / "candle" / row["image_path"]).with_suffix(".npy").is_file()
    message = cli.error("eval", "data@test_data=folder", *options, *own, name="nothing_to_test")
    assert "src.predict" in message


def test_a_category_with_one_class_has_no_metrics(cli: Cli, options: list[str], two_data_sets: Path) -> None:
    own = ["data@test_data=folder", f"test_data.root={two_data_sets}", "test_data.category=candle"]
    run = cli.ok("eval", *options, *own, "test_data.normal_dir=own")
    assert run.metrics["mean"] == {}
    assert run.metrics["categories"]["candle"] == {}
    assert len(run.predictions) == 3


def test_file_sizes_at_the_papers_widths(cli: Cli, options: list[str], tmp_path: Path) -> None:
    # Projections of 4 x (896 -> 640), on a tower that is short enough for a test.
    vision = {"image_size": 32, "layers": 4, "width": 896, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    architecture = tmp_path / "wide.json"
    architecture.write_text(json.dumps({"embed_dim": 640, "vision_cfg": vision, "text_cfg": text}))
    wide = [f"backbone.config={architecture}", "backbone.pretrained=null", "model.feature_layers=[1,2,3,4]"]
    run = cli.ok("train", *options, *TEST_CANDLE, *TRAIN_ON_PCB, *wide, "trainer.max_epochs=1")
    projections = (run.folder / "sdp_plus.trained_on_mvtec.safetensors").stat().st_size
    assert 4 * 2_296_320 < projections < 12e6
    assert (run.folder / "checkpoints" / "last.ckpt").stat().st_size < 35e6


@pytest.mark.data
@pytest.mark.slow
def test_all_four_experiments_on_real_images(cli: Cli, golden_a: Golden, real_data: Path, towers: Towers) -> None:
    options = [*golden_backbone(golden_a), f"paths.data_dir={real_data}"]
    lines = {
        "sdp_mvtec": "no training (frozen CLIP) -> test MVTec AD (58 images of bottle, screw)",
        "sdp_visa": "no training (frozen CLIP) -> test VisA (80 images of capsules, macaroni1)",
        "sdp_plus_mvtec": (
            "train VisA (test split, 80 images of capsules, macaroni1) -> test MVTec AD (58 images of bottle, screw)"
        ),
        "sdp_plus_visa": (
            "train MVTec AD (test split, 58 images of bottle, screw) -> test VisA (80 images of capsules, macaroni1)"
        ),
    }
    for name, line in lines.items():
        training = ["train_data.num_workers=0", "trainer.max_epochs=2"] if "plus" in name else []
        run = cli.ok("train", f"+exp={name}", *options, *training, name=name)
        assert run.out.splitlines()[0] == line
        assert set(METRICS) <= set(run.metrics["mean"])
        assert len(run.predictions) == (80 if name.endswith("visa") else 58)
        if training:
            assert losses(run)[-1] < losses(run)[0]
            assert towers.are_untouched()
            weights = next(run.folder.glob("sdp_plus.trained_on_*.safetensors"))
            tested = cli.ok("eval", f"+exp={name}", *options, f"ckpt_path={weights}", name=f"{name}_again")
            assert tested.metrics == run.metrics
    # Known of these images (and the reason for eval_size): 20 masks of macaroni1, most of them tiny.
    assert run.metrics["categories"]["macaroni1"]["vanished_masks"] > 0
