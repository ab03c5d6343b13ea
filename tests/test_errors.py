"""A user's mistake: one line that says what to do, exit code 1, nothing computed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.clip import weights
from tests.cli import Cli, golden_backbone
from tests.golden_reference import ROOT, Golden

SCRIPT = Path(sys.executable).with_name("clip-ad-eval")


@pytest.fixture(scope="session")
def mvtec(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("errors") / "mvtec")


@pytest.fixture
def options(golden_a: Golden, mvtec: Path) -> list[str]:
    return [
        *golden_backbone(golden_a),
        f"test_data.root={mvtec}",
        "prompts.templates=['a {}.']",
        "model.representative=mean",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["test_data.root=/nowhere"], ["/nowhere", "ground_truth"]),
        (["test_data.categories=[bottel]"], ["bottel", "candle", "pcb1"]),
        (["model.x=3"], ["model.x"]),
        (["+model.x=3"], ["model.x", "feature_layers"]),
        (["model.feature_layers=[3,13]"], ["1 to 12", "13"]),
        (["model.feature_layers=[6,3]"], ["[6, 3]"]),
        (["model.feature_layers=3"], ["model.feature_layers must be a list of whole numbers or null", "3"]),
        (["model.feature_layers=[3.5]"], ["model.feature_layers must be a list of whole numbers or null", "3.5"]),
        (["model.smoothing_sigma=wide"], ["smoothing_sigma", "wide"]),
        (["model.representative=dbscan", "model.dbscan.default.eps=0"], ["eps above 0"]),
        (["backbone.name=hf-hub:me/tiny"], ["hf-hub:me/tiny"]),
        (["model.feature_tap=last"], ["reference", "block_output", "last"]),
        (["model.representative=median"], ["mean_shift", "median"]),
        (["model.smoothing_sigma=-1"], ["smoothing_sigma", "-1"]),
        (["model.representative=dbscan", "model.dbscan.default.eps=1e-9"], ["no cluster", "model.dbscan"]),
        (["backbone.pretrained=/nowhere/weights.pt"], ["/nowhere/weights.pt"]),
        (["backbone.config=/nowhere/a.json"], ["/nowhere/a.json"]),
        (["backbone.config=null", "backbone.name=ViT-B-17"], ["ViT-B-17", "ViT-B-16"]),
        (["backbone.config=null", "backbone.name=RN50"], ["RN50", "ResNet"]),
        (["backbone.config=null", "backbone.name=ViT-B-16-SigLIP"], ["ViT-B-16-SigLIP", "timm"]),
        (["test_data.image_size=0"], ["image_size", "0"]),
        (["test_data.image_size=81"], ["81", "80"]),
        (["test_data.eval_size=big"], ["eval_size", "native"]),
        (["test_data.eval_size=20000"], ["eval_size", "up to 8192", "20000"]),
        (["test_data.root=/no\x1b[31mwhere"], ["/no\\x1b[31mwhere"]),
        (["test_data.transforms=weird"], ["weird", "augment"]),
        (["model=sdp_plus"], ["ckpt_path", "src.train"]),
        (["model=sdp_plus", "ckpt_path=/nowhere.ckpt"], ["/nowhere.ckpt"]),
        (["ckpt_path=/nowhere.ckpt"], ["/nowhere.ckpt"]),
        (["+model.dbscan.default.epz=1"], ["epz", "min_samples"]),
        (["model.dbscan.default.eps=wide"], ["eps", "wide"]),
        (["model._target_=src.models.sdp.SPD"], ["src.models.sdp.SPD"]),
        (["logger=null"], ["None"]),
        (["seed=-1"], ["seed", "-1"]),
        (["+trainer.limit_test_batches=0"], ["limit_test_batches"]),
        (["trainer.precision=64-true"], ["bf16-mixed", "64-true"]),
        (["trainer=gpu"], ["gpu"]),
        (["trainer.devices=2", "+trainer.strategy=ddp_spawn"], ["ddp_spawn", "trainer.strategy must be ddp"]),
        (["trainer.precision=8"], ["8"]),
        (["prompts.templates=['no place']"], ["no place"]),
    ],
)
def test_evaluation(cli: Cli, options: list[str], overrides: list[str], expected: list[str]) -> None:
    message = cli.error("eval", *options, *overrides)
    for part in expected:
        assert part in message
    assert not (cli.folder / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.smoting_sigma=3", "model.smoting_sigma'; did you mean 'model.smoothing_sigma'?"),
        ("test_data.bath_size=4", "test_data.bath_size'; did you mean 'test_data.batch_size'?"),
        ("model.dbscan.vsa.eps=1", "model.dbscan.vsa'; did you mean 'model.dbscan.visa'?"),
        ("tset_data.root=x", "tset_data'; did you mean 'test_data'?"),
        ("backbon=x", "backbon'; did you mean 'backbone'?"),
        ("backbone.nme=x", "backbone.nme'; did you mean 'backbone.name'?"),
        ("hydra.sweepr=x", "hydra.sweepr'; did you mean 'hydra.sweeper'?"),
    ],
)
def test_a_misspelt_key(cli: Cli, override: str, line: str) -> None:
    assert cli.error("train", override) == f"unknown configuration key '{line}"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "model=sdpp",
            "'model' has no 'sdpp'; did you mean 'sdp'? known: anomalyclip, april_gan, clip, clip_surgery, sdp, "
            "sdp_plus, winclip, winclip_plus",
        ),
        ("logger=[csv,wandd]", "'logger' has no 'wandd'; did you mean 'wandb'? known: csv, tensorboard, wandb"),
        ("+sweep=xyz", "'sweep' has no 'xyz'; known: grid, optuna, references, seeds"),
    ],
)
def test_an_option_that_its_group_does_not_have(cli: Cli, override: str, line: str) -> None:
    assert cli.error("train", override) == f"the config group {line}"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("+exp=sdp_cifar", ["'exp' has no 'sdp_cifar'", "did you mean 'sdp_visa'?", "sdp_demo, sdp_mvtec"]),
        ("data@test_data=viza", ["'data' has no 'viza'", "did you mean 'visa'?", "known: ", "mvtec"]),
        ("dta@test_data=visa", ["config group 'dta' does not exist; did you mean 'data'?"]),
        ("data=visa", ["override one of data@test_data, data@train_data?"]),
        ("exp=sdp_visa", ["needs a plus: +exp=sdp_visa"]),
        ("+model.smoothing_sigma=3", ["is there already", "without the plus: model.smoothing_sigma=VALUE"]),
        ("train_data.batch_size=2", ["there is no train_data yet; choose one by data@train_data=NAME"]),
        ("metrics.x=3", ["choose one by metrics=NAME, or add one with a plus: +metrics.x=3"]),
        ("trainer.max_steps=2", ["argument of lightning.Trainer needs a plus: +trainer.max_steps=2"]),
        ("trainer.fast_dev_run=2", ["known: accelerator, devices", "needs a plus: +trainer.fast_dev_run=2"]),
        ("callbacks.mine=3", ["unknown configuration key 'callbacks.mine'", "needs a plus: +callbacks.mine=3"]),
        ("model.feature_layers=[1,2", ["can't read the option 'model.feature_layers=[1,2'", "quotes"]),
        ("seed", ["can't read the option 'seed' (missing EQUAL", "write KEY=VALUE"]),
    ],
)
def test_what_can_not_be_composed(cli: Cli, override: str, parts: list[str]) -> None:
    message = cli.error("train", override)
    for part in parts:
        assert part in message


def test_a_plus_is_not_proposed_where_it_would_not_help(cli: Cli) -> None:
    for override in ("model.xyz=3", "test_data.xyz=3", "xyz=3", "paths.xyz=3", "hydra.sweeper.xyz=3"):
        assert f"+{override}" not in cli.error("train", override)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("model:\n  feature_layers: [1\nseed: 2\n", 4, "expected ',' or ']'"),
        ("model: 3\n\tseed: 2\n", 3, "found character '\\t'"),
        ("model: {smoothing_sigma: 1, smoothing_sigma: 2}\n", 2, "duplicate key smoothing_sigma"),
    ],
)
def test_a_broken_yaml(cli: Cli, tmp_path: Path, content: str, line: int, reason: str) -> None:
    (tmp_path / "exp").mkdir()
    broken = tmp_path / "exp" / "broken.yaml"
    broken.write_text(f"# @package _global_\n{content}")
    message = cli.error("eval", f"hydra.searchpath=[file://{tmp_path}]", "+exp=broken")
    assert message.startswith(f"{broken}, line {line}: ")
    assert reason in message


def test_a_choice_that_is_wrong_in_a_file_names_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "own.yaml").write_text("# @package _global_\ndefaults: [/data@own: viza]\n")
    message = cli.error("eval", f"hydra.searchpath=[file://{tmp_path}]", "+exp=own")
    assert message.startswith("exp/own.yaml: the config group 'data' has no 'viza'; did you mean 'visa'?")


TRAINING = ["model=sdp_plus", "data@train_data=mvtec", "allow_leakage=true", "train_data.num_workers=0"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=sdp_plus"], ["train_data"]),
        (["model=sdp_plus", "data@train_data=mvtec", "train_data.root=/nowhere"], ["/nowhere"]),
        (
            ["model=sdp_plus", "data@train_data=mvtec", "train_data.split=train", "train_data.categories=[candle]"],
            ["has none"],
        ),
        ([*TRAINING, "trainer.max_epochs=0"], ["max_epochs", "0"]),
        ([*TRAINING, "trainer.max_epochs=many"], ["max_epochs", "many"]),
        ([*TRAINING, "optimizer=null"], ["optimizer"]),
        (
            [*TRAINING, "model.dice_weight=-1"],
            ["model.focal_weight and dice_weight must be 0", "dice_weight=-1"],
        ),
        ([*TRAINING, "model.focal_weight=much"], ["model.focal_weight must be a number", "much"]),
        ([*TRAINING, "model.focal_weight=0", "model.dice_weight=0"], ["not all 0"]),
        ([*TRAINING, "optimizer.lr=high"], ["optimizer"]),
        ([*TRAINING, "optimizer._target_=torch.optim.Adamm"], ["torch.optim.Adamm"]),
        (["model=sdp_plus", "data@train_data=mvtec", "train_data.image_size=160"], ["image_size", "160"]),
        (["model=sdp_plus", "data@train_data=mvtec", "val_categories=[bottle]"], ["bottle", "candle"]),
        (["model=sdp_plus", "data@train_data=mvtec", "ckpt_path=x.ckpt"], ["ckpt_path", "paths.output_dir"]),
    ],
)
def test_training(cli: Cli, options: list[str], mvtec: Path, overrides: list[str], expected: list[str]) -> None:
    train = mvtec / "candle" / "train" / "good"
    train.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(mvtec.glob("candle/test/good/*.png")), train)
    message = cli.error("train", *options, f"paths.data_dir={mvtec.parent}", *overrides)
    for part in expected:
        assert part in message


def test_checkpoint_of_another_shape(cli: Cli, options: list[str], golden_a: Golden, tmp_path: Path) -> None:
    checkpoint = golden_a.write_reference_checkpoint(tmp_path / "four_levels.pth")
    sdp_plus = [*options, "model=sdp_plus"]
    message = cli.error("eval", *sdp_plus, f"ckpt_path={checkpoint}", "model.feature_layers=[6,12]")
    assert "feature_layers" in message
    narrow = {name: value[..., :32].clone() for name, value in golden_a.linear_state.items()}
    torch.save({"linear_layers": narrow}, tmp_path / "narrow.pth")
    assert "another backbone" in cli.error("eval", *sdp_plus, f"ckpt_path={tmp_path / 'narrow.pth'}")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "text.ckpt" in cli.error("eval", *sdp_plus, f"ckpt_path={tmp_path / 'text.ckpt'}")


def test_scores_that_are_no_numbers(cli: Cli, options: list[str], golden_a: Golden, tmp_path: Path) -> None:
    broken = {name: torch.full_like(value, 3e38) for name, value in golden_a.linear_state.items()}  # sums overflow
    torch.save({"linear_layers": broken}, tmp_path / "nan.pth")
    message = cli.error("eval", *options, "model=sdp_plus", f"ckpt_path={tmp_path / 'nan.pth'}")
    assert "candle/test/" in message
    assert "not finite" in message


def test_weights_of_another_architecture(cli: Cli, options: list[str], golden_a: Golden, tmp_path: Path) -> None:
    settings = json.loads(golden_a.config_path.read_text())
    settings["vision_cfg"]["width"] = 64
    other = tmp_path / "narrow.json"
    other.write_text(json.dumps(settings))
    message = cli.error("eval", *options, f"backbone.config={other}")
    assert str(golden_a.weights_path) in message
    assert "backbone.config" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(
    cli: Cli, options: list[str], golden_a: Golden, tmp_path: Path, workers: int
) -> None:
    root = golden_a.write_mvtec(tmp_path / "mvtec")
    victim = sorted(root.glob("pcb1/test/*/*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:2000])
    message = cli.error("eval", *options, f"test_data.root={root}", f"test_data.num_workers={workers}")
    assert str(victim) in message


def test_without_network_the_tag_is_named(
    cli: Cli, golden_a: Golden, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_reachable", lambda url: False)
    message = cli.error("eval", f"test_data.root={mvtec}", "trainer=cpu")
    assert "laion400m_e31" in message
    assert "backbone.pretrained=/path/to/weights" in message


def test_an_output_folder_that_can_not_be(cli: Cli, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in cli.error("eval", *options, f"paths.output_dir={tmp_path / 'file' / 'run'}")


@pytest.mark.slow
@pytest.mark.skipif(
    not SCRIPT.exists(), reason="the package is not installed beside this Python, as `make install` does"
)
def test_the_console_script_works_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "+foo=3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown configuration key 'foo'")


@pytest.mark.slow
def test_a_fresh_process_says_it_in_one_line(tmp_path: Path) -> None:
    for command in ("train", "eval", "predict"):
        arguments = [sys.executable, "-m", f"src.{command}", "+foo=3", f"paths.output_dir={tmp_path / command}"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr + done.stdout
        assert not list((tmp_path / command).glob("*"))


@pytest.mark.slow
def test_output_that_nobody_reads_ends_in_one_line() -> None:
    command = [sys.executable, "-m", "src.train", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "error: the output was closed before the end\n"
    assert process.returncode == 1
