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
from src.config import check_training, validate
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden

EXPERIMENTS = sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))
COMMANDS = ("train", "eval", "predict", "calibrate")


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, ["paths.output_dir=/tmp/nowhere", *overrides])
    # These interpolations have a value only inside a run.
    config.logger = None
    config.callbacks = None
    return config


def refused(command: str, *overrides: str) -> str:
    """The line that a configuration is refused with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, ["paths.output_dir=/tmp/nowhere", "~logger.csv", *overrides])
    with pytest.raises(UserError) as error:
        validate(config, command)
    assert "\n" not in str(error.value)
    return str(error.value)


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
    assert (config.train_data is not None) == (model in ("sdp_plus", "april_gan", "anomalyclip"))
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
    assert config.model.dbscan == {
        "default": {"eps": 0.5, "min_samples": 15},
        "visa": {"eps": 1.5, "min_samples": 25},
    }
    assert validate(composed("train", "+exp=sdp_plus_visa")).model.smoothing_sigma == 2
    assert validate(composed("eval", "+exp=sdp_visa")).model.smoothing_sigma == 8


def test_the_data_set_can_be_exchanged_in_every_command() -> None:
    for command in COMMANDS:
        config = composed(command, "+exp=sdp_mvtec", "data@test_data=visa")
        assert config.test_data._target_ == "datamodules.visa.VisA"


@pytest.mark.parametrize("backbone", sorted(path.stem for path in (CONF / "backbone").glob("*.yaml")))
def test_a_backbone_sets_nothing_of_the_model(backbone: str) -> None:
    plain, other = (composed("eval", "+exp=sdp_mvtec", *more) for more in ([], [f"backbone={backbone}"]))
    assert validate(other).backbone.name
    assert {**other, "backbone": None} == {**plain, "backbone": None}


@pytest.mark.parametrize("sweep", ["grid", "seeds", "optuna"])
def test_every_sweep_adds_to_an_experiment(sweep: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+exp=sdp_plus_visa", f"+sweep={sweep}"], return_hydra_config=True)
    plain = composed("train", "+exp=sdp_plus_visa", f"+sweep={sweep}")
    validate(plain)
    parameters = config.hydra.sweeper.params
    assert parameters
    for key in parameters:
        assert OmegaConf.select(plain, key, default="absent") != "absent", key
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
        ("+model.smoothing_sigm=3", "did you mean 'model.smoothing_sigma'?"),
        ("+trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        ("+test_data.batchsize=3", "did you mean 'test_data.batch_size'?"),
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


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+callbacks.x._target_=shutil.copyfile", "callbacks.x._target_"),
        ("+callbacks.x._target_=hydra.utils.get_method", "callbacks.x._target_"),
        ("+callbacks.x._target_=hydra.utils.log.error", "callbacks.x._target_"),
        ("+callbacks.x._target_=src.models.sdp.SDP", "lightning.Callback"),
        ("+callbacks.x._target_=antigravity", "package.module.Class"),
        ("+callbacks.x._target_=antigravity.x", "Python's own"),
        ("+callbacks.x._target_='no name.at all'", "package.module.Class"),
        ("+callbacks.x._target_=[lightning.Callback]", "package.module.Class"),
        ("+callbacks.x._target_=null", "package.module.Class"),
        ("+callbacks.x={}", "callbacks.x"),
        ("+callbacks.x=[{_target_:lightning.Callback}]", "callbacks.x"),
        ("+callbacks._target_=lightning.Callback", "callbacks._target_"),
        ("+callbacks.x={_target_:lightning.Callback,_partial_:true}", "callbacks.x._partial_"),
        ("model._target_=torch.nn.Linear", "src.models.method.Method"),
        ("prompts._target_=src.models.sdp.SDP", "src.models.prompts.Prompts"),
        ("test_data._target_=datamodules.dataset.AnomalyDataset", "datamodules.base.AnomalyDataModule"),
        ("optimizer._target_=torch.nn.Linear", "torch.optim.Optimizer"),
        ("optimizer._partial_=false", "optimizer._partial_"),
        ("trainer._target_=lightning.Callback", "lightning.Trainer"),
        ("+logger.x._target_=lightning.Callback", "Logger"),
        ("+model.own={_target_:subprocess.Popen,args:[true]}", "model.own._target_"),
        ("+model.own=[{deep:[{_target_:subprocess.Popen,args:[true]}]}]", "model.own.0.deep.0._target_"),
        ("+model._args_=[{_target_:subprocess.Popen,args:[true]}]", "model._args_.0._target_"),
        ("+model.dbscan.x={_target_:torch.os.system,command:true}", "is no class"),
        ("+model.dbscan.x={_target_:src.cli.Path}", "Python's own"),
        ("+model.dbscan.x={_target_:hydra.utils.get_method,path:os.system}", "a class of lightning, torch"),
        ("+model.dbscan.x={_target_:numpy.memmap,filename:x}", "a class of lightning, torch"),
        ("+model.dbscan.x._target_=builtins.eval", "model.dbscan.x._target_"),
        ("feature_cache.enabled={_target_:torch.nn.Identity}", "feature_cache.enabled"),
        ("+trainer.x={_target_:'${oc.decode:subprocess.Popen}'}", "trainer.x._target_"),
        ("+trainer.x={_target_:'${.y}',y:subprocess.Popen}", "trainer.x._target_"),
        ("+trainer.x='${oc.create:{_target_:subprocess.Popen}}'", "trainer.x._target_"),
        ("+trainer.x='\\${oc.create:{_target_:subprocess.Popen}}'", "trainer.x"),
        ("+trainer.x={_target_:'\\${oc.decode:subprocess.Popen}'}", "trainer.x._target_"),
    ],
)
def test_a_node_names_a_class_of_its_kind(override: str, key: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["paths.output_dir=/tmp/nowhere", "~logger.csv", override])
    with pytest.raises(UserError, match=r"_target_|callbacks|_partial_|configuration") as error:
        validate(config)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("optimizer.lr=abc", "optimizer.lr must be a number, but got abc"),
        ("optimizer.lr=true", "optimizer.lr must be a number, but got true"),
        ("+optimizer.betas=[0.9,a]", "optimizer.betas must be a list of numbers, but got [0.9, 'a']"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs must be a whole number or null, but got 1.5"),
        ("trainer.devices=x", "trainer.devices must be how many, a list such as [0,1], or auto, but got x"),
        ("trainer.devices=0", "trainer.devices must be how many"),
        ("trainer.deterministic=maybe", "trainer.deterministic must be true or false or warn or null, but got maybe"),
        ("+trainer.limit_val_batches=half", "trainer.limit_val_batches must be a number or null, but got half"),
        ("+trainer.max_time=3", "trainer.max_time must be text or null, but got 3"),
        ("test_data.batch_size=a", "test_data.batch_size must be a whole number, but got a"),
        ("test_data.batch_size=null", "test_data.batch_size must be a whole number, but got null"),
        ("test_data.categories=bottle", "test_data.categories must be a list of text or null, but got bottle"),
        ("test_data.shuffle=1", "test_data.shuffle must be true or false, but got 1"),
        ("test_data.root=true", "test_data.root must be text, but got true"),
        ("model.feature_tap=last", "model.feature_tap must be reference or block_output, but got last"),
        ("model=sdp_plus model.smoothing_sigma=x", "model.smoothing_sigma must be a number, but got x"),
        ("prompts.templates=x", "prompts.templates must be a list of text, but got x"),
        (
            "+callbacks.x={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:[a]}",
            "callbacks.x.monitor must be text",
        ),
        ("seed=1.5", "seed: Value '1.5' of type 'float' could not be converted to Integer"),
    ],
)
def test_a_value_of_another_type_than_its_class_takes(overrides: str, expected: str) -> None:
    assert expected in refused("train", *overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "optimizer.lr=1",
        "+optimizer.betas=[0.8,0.9]",
        "trainer.devices=[0,1]",
        "trainer.devices=-1",
        "+trainer.fast_dev_run=2",
        "+trainer.max_time={hours:1}",
        "trainer.profiler=simple",
        "trainer.precision=32",
        "test_data.eval_size=native",
        "test_data.eval_size=120",
        "test_data.categories=[1,2]",
        "model.feature_layers=[3,4]",
        "logger=wandb +logger.wandb.anything=x",
    ],
)
def test_values_that_a_class_takes(overrides: str) -> None:
    validate(composed("train", *overrides.split()))


def test_a_number_is_text_where_text_is_wanted() -> None:
    config = validate(composed("predict", "test_data.root=5", "test_data.category=7", "model.representative=3"))
    assert (config.test_data.root, config.test_data.category, config.model.representative) == ("5", "7", "3")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("{_target_:torchmetrics.MeanMetric,level:image}", ""),
        ("{_target_:torchmetrics.MeanMetric,level:pixel,nan_strategy:ignore}", ""),
        ("{_target_:torchmetrics.MeanMetric,level:images}", "metrics.own.level must be image or pixel, but got images"),
        ("{_target_:torchmetrics.MeanMetric}", "metrics.own must have a level: image or pixel"),
        ("{_target_:torch.nn.Linear,level:image}", "torchmetrics.Metric"),
        ("{_target_:torchmetrics.MeanMetric,level:image,_partial_:true}", "metrics.own._partial_"),
        ("3", "metrics.own must have a _target_"),
    ],
)
def test_metrics_of_ones_own(node: str, expected: str) -> None:
    overrides = ("train", f"+metrics.own={node}")
    if expected:
        assert expected in refused(*overrides)
    else:
        assert validate(composed(*overrides)).metrics.own.level in ("image", "pixel")


def test_a_metric_has_a_name_of_its_own() -> None:
    node = "{_target_:torchmetrics.MeanMetric,level:image}"
    assert "metrics.pixel_AP has the name of" in refused("train", f"+metrics.pixel_AP={node}")


TRAINING = ["+exp=sdp_plus_visa"]
OWN_METRIC = "+metrics.own={_target_:torchmetrics.MeanMetric,level:image}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.max_epochs=0"], "trainer.max_epochs must be 1 or more, but got 0"),
        (["trainer.max_epochs=null"], "trainer.max_epochs must be 1 or more, but got None"),
        (["optimizer=null"], "optimizer is null"),
        (["select=own", "val_categories=[screw]"], "select must be last or one of image_AUROC"),
        (["select=pixel_AP"], "select=pixel_AP needs val_categories"),
        (["train_data.image_size=160"], "test_data.image_size (null) and train_data.image_size (160) must agree"),
        (["test_data.image_size=80", "train_data.image_size=160"], "(80) and train_data.image_size (160)"),
        (["test_data.shard=1/2"], "test_data.shard is for src.eval"),
    ],
)
def test_what_training_needs(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        check_training(validate(composed("train", *TRAINING, *overrides)))
    assert expected in str(error.value)


def test_an_epoch_may_be_selected_by_a_metric_of_ones_own() -> None:
    check_training(validate(composed("train", *TRAINING, OWN_METRIC, "select=own", "val_categories=[screw]")))


def test_a_callback_that_watches_held_out_categories_needs_some() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["paths.output_dir=/x", "~logger.csv", *TRAINING, "callbacks=early_stopping"])
    with pytest.raises(UserError, match=r"callbacks\.early_stopping watches val/last"):
        check_training(validate(config))


def test_what_leaves_nothing_to_do() -> None:
    for command in ("train", "eval"):
        assert "test=false leaves nothing to do" in refused(command, "+exp=sdp_mvtec", "test=false")
    assert "test=false" in refused("eval", *TRAINING, "test=false")
    assert validate(composed("train", *TRAINING, "test=false"), "train").test is False
    assert validate(composed("predict", "test_data.root=/x", "test=false"), "predict")
    assert "limit_test_batches=0" in refused("eval", "+trainer.limit_test_batches=0")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("+model.smooting_sigma=3 model=sdp_plus", "did you mean 'model.smoothing_sigma'?"),
        ("+test_data.batchsize=3 data@test_data=folder test_data.root=x", "did you mean 'test_data.batch_size'?"),
        ("+exps=x", "did you mean '+exp'?"),
    ],
)
def test_the_arguments_of_bases_are_known(overrides: str, expected: str) -> None:
    assert expected in refused("train", *overrides.split())


@pytest.mark.parametrize("value", ['"${prompts.%s}${.%s}"', "{x: '${prompts.%s}', y: '${..%s}'}"])
def test_interpolations_that_multiply_are_refused_at_once(value: str, tmp_path: Path) -> None:
    lines = [f"  a{n}: {value % (f'a{n + 1}', f'a{n + 1}')}" for n in range(40)]
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "bomb.yaml").write_text("\n".join(["# @package _global_", "prompts:", *lines, "  a40: x"]))
    message = refused("train", f"hydra.searchpath=[file://{tmp_path}]", "+exp=bomb")
    assert "made of more than 10000 interpolations" in message
    assert "prompts.a" in message


def test_a_misspelt_key_in_an_experiments_file(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "own.yaml").write_text("# @package _global_\nmodel:\n  feature_layer: [3]\n")
    with pytest.raises(UserError, match=r"did you mean 'model\.feature_layers'"):
        validate(composed("train", f"hydra.searchpath=[file://{tmp_path}]", "+exp=own"))


def test_an_unknown_key_without_plus_is_refused_by_composing() -> None:
    with pytest.raises(ConfigCompositionException):
        composed("train", "model.x=3")


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's package outside the repository, with a folder of configurations."""
    package = tmp_path / "package" / "own_nodes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from lightning import Callback\n"
        "from src.models.sdp import SDP\n"
        "class Blur:\n"
        "    def __init__(self, size):\n"
        "        self.size = size\n"
        "class Own(SDP):\n"
        "    name = 'own'\n"
        "    def __init__(self, blur, **settings):\n"
        "        super().__init__(**settings)\n"
        "        assert blur.size == 3\n"
        "class Told(Callback):\n"
        "    def on_test_end(self, trainer, module):\n"
        "        print('told by', module.method.name)\n"
    )
    (package / "broken.py").write_text("raise ZeroDivisionError('on import')\n")
    (package / "ends.py").write_text("raise SystemExit('on import')\n")
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    (tmp_path / "conf" / "exp" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /data@test_data: mvtec]\n"
        "model: {_target_: own_nodes.Own, blur: {_target_: own_nodes.Blur, size: 3}}\n"
        "callbacks: {told: {_target_: own_nodes.Told}}\n"
    )
    (tmp_path / "conf" / "exp" / "evil.yaml").write_text(
        "# @package _global_\n"
        f"callbacks: {{told: {{_target_: shutil.copyfile, src: {package}/broken.py, dst: {tmp_path}/copy}}}}\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    return tmp_path


@pytest.fixture
def options(golden_a: Golden, own_package: Path) -> list[str]:
    return [
        "--config-dir",
        str(own_package / "conf"),
        *golden_backbone(golden_a),
        "prompts.templates=['a {}.']",
        "model.representative=mean",
        f"test_data.root={golden_a.write_mvtec(own_package / 'mvtec')}",
    ]


def test_nodes_of_a_users_own_package(cli: Cli, options: list[str]) -> None:
    assert "told by own" in cli.ok("eval", *options, "+exp=own").out


def test_a_function_is_not_called(cli: Cli, options: list[str], own_package: Path) -> None:
    copy = [
        "+callbacks.x._target_=shutil.copyfile",
        f"+callbacks.x.src={__file__}",
        f"+callbacks.x.dst={own_package}/copy",
    ]
    assert "callbacks.x._target_" in cli.error("eval", *options, *copy)
    assert "callbacks.told._target_" in cli.error("eval", *options, "+exp=evil")
    program = f"{{_target_:subprocess.Popen,_args_:[[touch,{own_package}/copy]]}}"
    assert "model.dbscan.x" in cli.error("eval", *options, f"+model.dbscan.x={program}")
    assert not (own_package / "copy").exists()


@pytest.mark.parametrize(
    ("module", "reason"), [("broken", "ZeroDivisionError"), ("ends", "on import"), ("no", "own_nodes.no")]
)
def test_a_module_that_cannot_be_imported(module: str, reason: str, cli: Cli, options: list[str]) -> None:
    message = cli.error("eval", *options, f"+callbacks.x._target_=own_nodes.{module}.Told")
    assert message.startswith("callbacks.x._target_")
    assert reason in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("metrics_memory_gb=nan", "metrics_memory_gb"),
        ("feature_cache.max_gb=inf", "feature_cache.max_gb"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("model.smoothing_sigma=-inf", "model.smoothing_sigma"),
        (f"seed={2**70}", "seed"),
        (f"seed={2**32}", "seed"),
        ("+prompts.x={y:'${prompts.x}'}", "prompts"),
        ("+prompts.x='${prompts.z}' +prompts.z='${prompts.x}'", "ecursive"),
        ("+prompts.x={y:'${prompts.z}'} +prompts.z={y:'${prompts.x}'}", "interpolation"),
    ],
)
def test_values_that_mean_nothing(override: str, key: str) -> None:
    with pytest.raises(UserError, match="configuration: ") as error:
        validate(composed("train", *override.split()))
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "+tile=518", "tile is a key of src.predict, src.calibrate, and src.train does not read it"),
        ("eval", "+source=photos", "source is a key of src.predict, src.calibrate, and src.eval does not read it"),
        ("train", "+threshold=0.5", "threshold is a key of src.eval, src.predict, src.calibrate"),
        ("predict", "+max_false_alarms=0.1", "max_false_alarms is a key of src.calibrate"),
    ],
)
def test_a_key_of_another_command_is_refused(command: str, override: str, message: str) -> None:
    assert message in refused(command, "test_data.root=.", override)
