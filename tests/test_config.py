"""Every experiment composes; what composing does not refuse, `validate` does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from datamodules.errors import UserError
from src.cli import CONF
from src.config import validate

EXPERIMENTS = sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))
COMMANDS = ("train", "eval", "predict")


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, ["paths.output_dir=/tmp/nowhere", *overrides])
    # These interpolations have a value only inside a run.
    config.logger = None
    config.callbacks = None
    return config


def test_the_published_experiments_are_there() -> None:
    assert {"sdp_mvtec", "sdp_visa", "sdp_plus_mvtec", "sdp_plus_visa"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str, command: str) -> None:
    config = validate(composed(command, f"+exp={experiment}"))
    # <model>_<benchmark that is reported>
    model, benchmark = experiment.rsplit("_", 1)
    assert get_class(config.model._target_).name == model
    assert get_class(config.test_data._target_).name == benchmark
    assert (config.train_data is not None) == (model == "sdp_plus")
    if config.train_data is not None:
        assert get_class(config.train_data._target_).name != benchmark or set(config.train_data.categories).isdisjoint(
            config.test_data.categories
        )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_prediction_takes_an_experiments_model_and_own_images(experiment: str) -> None:
    config = validate(composed("predict", f"+exp={experiment}", "test_data.root=/my/images"))
    assert config.test_data._target_ == "datamodules.folder.Folder"
    assert config.test_data.get("categories") is None
    assert config.model == composed("eval", f"+exp={experiment}").model


def test_the_papers_defaults() -> None:
    config = validate(composed("train", "+exp=sdp_plus_mvtec"))
    assert (config.backbone.name, config.backbone.pretrained) == ("ViT-B-16-plus-240", "laion400m_e31")
    assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.Adam", 1e-4)
    assert (config.trainer.max_epochs, config.train_data.batch_size, config.seed) == (5, 8, 42)
    assert (config.train_data.split, config.train_data.transforms, config.train_data.shuffle) == (
        "test",
        "default",
        False,
    )
    assert (config.model.smoothing_sigma, config.model.representative) == (8, "dbscan")
    assert (config.test_data.dbscan, config.train_data.dbscan) == (
        {"eps": 0.5, "min_samples": 15},
        {"eps": 1.5, "min_samples": 25},
    )
    assert validate(composed("train", "+exp=sdp_plus_visa")).model.smoothing_sigma == 2
    assert validate(composed("eval", "+exp=sdp_visa")).model.smoothing_sigma == 8


def test_the_data_set_can_be_exchanged_in_every_command() -> None:
    for command in COMMANDS:
        config = composed(command, "+exp=sdp_mvtec", "data@test_data=visa")
        assert config.test_data._target_ == "datamodules.visa.VisA"


def test_a_larger_backbone_brings_its_levels() -> None:
    config = validate(composed("eval", "+exp=sdp_mvtec", "backbone=vit_l_14_336"))
    assert (config.backbone.name, config.model.feature_layers) == ("ViT-L-14-336", [6, 12, 18, 24])
    overridden = composed("eval", "backbone=vit_l_14_336", "model.feature_layers=[24]")
    assert overridden.model.feature_layers == [24]


@pytest.mark.parametrize("sweep", ["grid", "seeds", "optuna"])
def test_every_sweep_adds_to_an_experiment(sweep: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+exp=sdp_plus_visa", f"+sweep={sweep}"], return_hydra_config=True)
    plain = composed("train", "+exp=sdp_plus_visa", f"+sweep={sweep}")
    validate(plain)
    parameters = config.hydra.sweeper.params
    assert parameters
    for key in parameters:
        assert OmegaConf.select(plain, key) is not None, key
    # A search opens no benchmark and maximises a metric that is better when it is higher.
    is_search = sweep == "optuna"
    assert plain.test is not is_search
    assert not is_search or (config.hydra.sweeper.direction, plain.select) == ("maximize", "pixel_AP")


@pytest.mark.parametrize("loggers", ["wandb", "tensorboard", "[csv,wandb]"])
def test_loggers(loggers: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"logger={loggers}"])
    assert list(config.logger) == loggers.strip("[]").split(",")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+foo=3", "'foo'"),
        ("+trianer=3", "did you mean 'trainer'?"),
        ("+model.x=3", "'model.x'"),
        ("+model.smoothing_sigm=3", "did you mean 'smoothing_sigma'?"),
        ("+trainer.max_epoch=3", "did you mean 'max_epochs'?"),
        ("+test_data.batchsize=3", "did you mean 'batch_size'?"),
        ("+paths.cache=3", "cache"),
        ("+backbone.tag=3", "tag"),
        ("seed=many", "seed"),
        ("save_maps=perhaps", "save_maps"),
        ("model._target_=src.models.sdp.SPD", "src.models.sdp.SPD"),
        ("model._target_=srcc.SDP", "srcc.SDP"),
        ("data@test_data=folder", "test_data.root"),
    ],
)
def test_mistakes_that_compose_are_refused(override: str, expected: str) -> None:
    with pytest.raises(UserError, match=r"configuration|_target_") as error:
        validate(composed("train", override))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_key_in_an_experiments_file(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "own.yaml").write_text("# @package _global_\nmodel:\n  feature_layer: [3]\n")
    with pytest.raises(UserError, match="did you mean 'feature_layers'"):
        validate(composed("train", f"hydra.searchpath=[file://{tmp_path}]", "+exp=own"))


def test_an_unknown_key_without_plus_is_refused_by_composing() -> None:
    with pytest.raises(ConfigCompositionException):
        composed("train", "model.x=3")
