"""The root configuration's type, and every rule that needs the configuration alone. Nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import UserError
from src.calibration import as_number, images_needed
from src.metric_names import METRIC_NAMES, RESULT_KEYS
from src.overrides import ADDED, did_you_mean, explain
from src.targets import Keys, check_targets, walk

ON_PHOTOS = ("predict", "calibrate")  # the commands that take a source
_ONLY_OF = {
    **dict.fromkeys(("source", "category", "tile", "overlap"), ON_PHOTOS),
    "threshold": ("eval", *ON_PHOTOS),  # calibrate's own rule says why it takes none
    "max_false_alarms": ("calibrate",),
}
"""Keys that other commands would not read."""
_OF_LOADING = ("image_size", "bits", "batch_size", "num_workers", "shard")
LAST = "last"  # of `select`: the last epoch is tested
_LARGEST_SEED = 2**32 - 1  # for a larger one, Lightning takes another
_MOST_INTERPOLATIONS = 10_000  # that a value may be made of
_INTERPOLATION = re.compile(r"\$\{(\.*)([^\W\d][\w.\[\]-]*)\}")  # of another value, by its path
_DEVICES = r"auto|-1|[1-9]\d*|\d+(,\d+)+,?|\d+,"
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
# Trainer settings under which less is trained or tested than the data sets hold, and what they are when that is not so.
# As text, since of 1 and 1.0 the one means a batch and the other everything.
_SHORTCUTS = {
    "fast_dev_run": ("False", "None"),
    "overfit_batches": ("0", "0.0", "None"),
    "limit_train_batches": ("1.0", "None"),
    "limit_val_batches": ("1.0", "None"),
    "limit_test_batches": ("1.0", "None"),
    "limit_predict_batches": ("1.0", "None"),
    "max_steps": ("-1",),
    "max_time": ("None",),
}
_ONLY_EVALUATION = ("limit_val_batches", "limit_test_batches", "limit_predict_batches")


@dataclass
class BackboneConfig:
    """A CLIP of open_clip."""

    name: str = MISSING
    pretrained: str | None = None
    config: str | None = None
    quick_gelu: bool | None = None
    position_resize: str | None = None
    compile: bool = False


@dataclass
class PathsConfig:
    """Where things are read and written."""

    data_dir: str = MISSING
    output_dir: str = MISSING
    cache_dir: str = MISSING


@dataclass
class FeatureCacheConfig:
    """Frozen features on disk."""

    enabled: Any = "auto"  # auto, true or false
    dtype: str = "float32"
    max_gb: float = 40.0


@dataclass
class Config:
    """Every key a run may have. Nodes with a `_target_` are checked against its signature instead.

    Example:
        >>> OmegaConf.merge(OmegaConf.structured(Config), {"seed": "7"}).seed
        7
    """

    test_data: dict[str, Any] = MISSING
    train_data: dict[str, Any] | None = None
    model: dict[str, Any] = MISSING
    prompts: dict[str, Any] = MISSING
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    feature_cache: FeatureCacheConfig = field(default_factory=FeatureCacheConfig)
    seed: int = 42
    optimizer: dict[str, Any] | None = None
    val_categories: list[str] = field(default_factory=list)
    select: str = LAST
    test: bool = True
    allow_leakage: bool = False
    ckpt_path: str | None = None
    save_maps: bool = False
    save_overlays: bool = False
    source: str | None = None
    category: str | None = None
    tile: int | None = None
    overlap: float = 0.2
    threshold: Any = None
    max_false_alarms: float = 0.01
    shots: int = 0
    reference_seed: int = 0
    reference_replacement: bool = False
    references: str | None = None
    metrics_memory_gb: float = 4.0


def validate(config: DictConfig, command: str = "train", data_set: str | None = None) -> DictConfig:
    """Check a composed configuration.

    Composing refuses overrides of keys that don't exist, but not `+foo=3`, nor a misspelt key in an experiment's file.
    Nothing that a `_target_` names is imported before all else is known to be right, and nothing is called here.

    Args:
        config: the configuration without Hydra's own node.
        command: `train`, `eval`, `predict` or `calibrate`.
        data_set: the class of the experiment's data set, whose settings of prompts count for the images of `source`.

    Returns:
        The configuration with every type checked and every interpolation resolved: a run instantiates what was checked,
        and not what an interpolation gives when it is read again.

    Raises:
        UserError: an unknown key, a value of the wrong type, a value that is missing, a `_target_` that is not of the
            kind that its node stands for, settings that can't be together.

    Example:
        >>> validate(OmegaConf.create({"sede": 7}))
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: unknown configuration key 'sede'; did you mean 'seed'?
    """
    known = list(Config.__dataclass_fields__)
    for key in map(str, config):
        if key not in known:
            raise UserError(f"unknown configuration key '{key}'{did_you_mean(key, [*known, *ADDED])}")
        is_changed = key in _ONLY_OF and config.get(key) not in (None, Config.__dataclass_fields__[key].default)
        if is_changed and command not in _ONLY_OF[key]:
            commands = ", ".join(f"src.{one}" for one in _ONLY_OF[key])
            raise UserError(f"{key} is a key of {commands}, and src.{command} does not read it; leave it out")
    try:
        _check_interpolations(OmegaConf.to_container(config))
        if command in ON_PHOTOS:
            config = _with_photos(config, data_set)
        typed = OmegaConf.merge(OmegaConf.structured(Config), config)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise UserError(f"configuration values are missing: {', '.join(missing)}; give them as KEY=VALUE")
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {explain(error)}") from error
    except RecursionError as error:
        raise UserError("configuration: an interpolation leads back to a node that it is in; give a value") from error
    assert isinstance(typed, DictConfig)
    content = OmegaConf.to_container(typed)
    _check_values(content)
    _check_root(typed, command)
    _check_trainer(typed.trainer)
    check_targets(content)
    checked = OmegaConf.merge(OmegaConf.structured(Config), content)
    assert isinstance(checked, DictConfig)
    return checked


def _with_photos(config: DictConfig, data_set: str | None) -> DictConfig:
    """Put the images of `source` in the place of the test data, which say only how images are loaded.

    Raises:
        UserError: there is neither a source nor a data set's folder.
    """
    data = config.get("test_data") or {}
    if not isinstance(data, (dict, DictConfig)):
        return config  # of a wrong type, as is told below
    if config.get("source") is None:
        if config.get("category") is not None or config.get("tile") is not None:
            raise UserError("category and tile are of the images in source=PATH, which is missing")
        if isinstance(data, DictConfig) and OmegaConf.is_missing(data, "root"):
            raise UserError("expected images in source=PATH: an image, a folder, a pattern or a CSV; see --help")
        return config
    name = data.get("category")
    if name is not None and data.get("_target_") == "datamodules.folder.Folder":
        raise UserError(f"test_data.category={name} does not count with a source; give category={name}")
    kept = {key: data[key] for key in _OF_LOADING if key in data}
    photos = {
        "_target_": "datamodules.photos.Photos",
        "root": str(config.source),
        "category": config.get("category"),
        "tile": config.get("tile"),
        "overlap": config.get("overlap", 0.2),
        "data_set": data_set,
    }
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.test_data = photos | kept
    return changed


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration, or a node of it, as plain dictionaries and lists.

    Example:
        >>> plain(OmegaConf.create({"seed": 7, "again": "${seed}"}))
        {'seed': 7, 'again': 7}
    """
    content = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def check_training(config: DictConfig) -> None:
    """Check the settings that only training reads, and those that can't be used with training.

    Raises:
        UserError: no optimizer, no epochs, an epoch to select that can't be, images of two sizes, a part of a test.

    Example:
        >>> check_training(OmegaConf.create({"trainer": {"max_epochs": 0}}))
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: trainer.max_epochs must be 1 or more, but got 0
    """
    epochs = config.trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"trainer.max_epochs must be 1 or more, but got {epochs}")
    if config.optimizer is None:
        raise UserError("optimizer is null, but the model trains; such as optimizer._target_=torch.optim.Adam")
    metrics = (*METRIC_NAMES, *(config.metrics or ()))
    if config.select != LAST and config.select not in metrics:
        raise UserError(f"select must be {LAST} or one of {', '.join(metrics)}, but got '{config.select}'")
    if config.select != LAST and not config.val_categories:
        raise UserError(f"select={config.select} needs val_categories=[...], categories of train_data to hold out")
    for name, callback in (config.callbacks or {}).items():
        monitor = str((callback or {}).get("monitor") or "")
        if monitor == f"val/{LAST}" or (monitor.startswith("val/") and not config.val_categories):
            raise UserError(
                f"callbacks.{name} watches {monitor}, a metric on held-out categories: give val_categories=[...] and "
                "select=METRIC"
            )
    tested, trained = (node.get("image_size") for node in (config.test_data, config.train_data or {}))
    if config.train_data is not None and tested != trained:
        raise UserError(
            f"test_data.image_size ({tested or 'null'}) and train_data.image_size ({trained or 'null'}) must agree; "
            "set both, or neither"
        )
    if config.test_data.get("shard") is not None:
        raise UserError("test_data.shard is for src.eval and src.predict; train first, then test with ckpt_path=FILE")


def shortcuts(trainer: DictConfig) -> list[str]:
    """The settings under which a run does less than its data sets hold, such as `limit_test_batches=2`.

    Example:
        >>> shortcuts(OmegaConf.create({"max_epochs": 5, "limit_train_batches": 1.0, "limit_test_batches": 2}))
        ['limit_test_batches=2']
    """
    return [
        f"{key}={trainer[key]}"
        for key, whole in _SHORTCUTS.items()
        if key in trainer and str(trainer[key]) not in whole
    ]


def training_shortcuts(trainer: DictConfig) -> list[str]:
    """The settings among `shortcuts` under which a run trains less.

    Example:
        >>> training_shortcuts(OmegaConf.create({"limit_train_batches": 10, "limit_test_batches": 2}))
        ['limit_train_batches=10']
    """
    return [one for one in shortcuts(trainer) if not one.startswith(_ONLY_EVALUATION)]


def _check_interpolations(content: Any) -> None:
    """Refuse a value that a chain of interpolations multiplies: `a: ${b}${b}`, `b: ${c}${c}`, and so on.

    Raises:
        UserError: a value is made of too many.
        RecursionError: a chain that long has no end.
    """
    values = dict(walk(content))
    counts: dict[Keys, int] = {}

    def count(path: Keys) -> int:
        """The values and interpolations that are read for a value."""
        if path not in counts:
            counts[path] = 0  # for one that leads back to itself, which resolving refuses
            counts[path] = sum(1 + count(part) for part in _parts(path, values.get(path)))
        return counts[path]

    for path, value in values.items():
        if isinstance(value, str) and count(path) > _MOST_INTERPOLATIONS:
            raise UserError(
                f"configuration: {'.'.join(path)} is made of more than {_MOST_INTERPOLATIONS} interpolations; "
                "write the value out"
            )


def _parts(path: Keys, value: Any) -> list[Keys]:
    """The paths of what a value holds, or of what the interpolations in it name."""
    if isinstance(value, (dict, list)):
        return [(*path, str(key)) for key in (value if isinstance(value, dict) else range(len(value)))]
    found = _INTERPOLATION.findall(value) if isinstance(value, str) else []
    # Each dot at the front is a step up, the first one to the node that holds the value.
    return [(*(path[: -len(dots)] if dots else ()), *re.split(r"[.\[\]]+", name.rstrip("]"))) for dots, name in found]


def _check_values(content: Any) -> None:
    """Refuse numbers that no setting means, and what would be another value when it is read again."""
    for path, value in walk(content):
        if isinstance(value, float) and not isfinite(value):
            raise UserError(f"configuration: {'.'.join(path)} must be a finite number, but got {value}")
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"configuration: {'.'.join(path)} must not have ${{ in its value, but got '{value}'; "
                "write an interpolation without a backslash"
            )


def _check_root(config: DictConfig, command: str) -> None:
    """Check the values of the typed keys."""
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise UserError(f"configuration: seed must be from 0 to {_LARGEST_SEED}, but got {config.seed}")
    if config.metrics_memory_gb < 0:
        raise UserError(f"configuration: metrics_memory_gb must be 0 or more, but got {config.metrics_memory_gb}")
    choices = {"enabled": ("auto", True, False), "dtype": ("float32", "float16")}
    for key, allowed in choices.items():
        if config.feature_cache[key] not in allowed:
            names, found = ", ".join(str(one).lower() for one in allowed), config.feature_cache[key]
            raise UserError(f"configuration: feature_cache.{key} must be one of {names}, but got {found}")
    if not config.feature_cache.max_gb > 0:
        raise UserError(f"configuration: feature_cache.max_gb must be above 0, but got {config.feature_cache.max_gb}")
    if str(config.paths.output_dir).startswith("~"):
        raise UserError("configuration: paths.output_dir is taken as it is; write the home folder out instead of ~")
    if config.threshold is not None:
        number = as_number(config.threshold)
        path = Path(str(config.threshold)).expanduser()
        if number is None and not path.is_file():
            raise UserError(f"threshold must be a number or a calibration.json, but there is no file {path}")
    if config.references is not None and config.tile is not None:
        raise UserError("tile can't be used with references, which are whole images; leave one out")
    if config.shots < 0:
        raise UserError(f"configuration: shots must be 0 or more reference images a category, but got {config.shots}")
    if command in ON_PHOTOS and config.source is not None and config.shots and config.references is None:
        raise UserError(
            f"shots={config.shots} draws from a benchmark's train split, but your images have none; give "
            "references=PATH: images without defects, as an image, a folder, a pattern or a CSV"
        )
    if command == "calibrate":
        images_needed(config.max_false_alarms)
        if config.threshold is not None:
            raise UserError("threshold is what src.calibrate finds; leave it out")
    if not config.test and (command == "eval" or (command == "train" and config.train_data is None)):
        raise UserError("test=false leaves nothing to do where nothing is trained; leave it out")
    for name in config.metrics or ():
        if name in RESULT_KEYS:
            raise UserError(f"metrics.{name} has the name of a result that is always there; choose another")
    if config.metrics and command == "eval" and config.test_data.get("shard") is not None:
        raise UserError("metrics: those of your own can't be joined from parts; leave out metrics or test_data.shard")


def _check_trainer(trainer: DictConfig) -> None:
    """Check what Lightning would refuse only when the trainer is built, or not at all."""
    precision, devices = str(trainer.get("precision") or _PRECISIONS[0]), trainer.get("devices", "auto")
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision must be 32, bf16-mixed or 16-mixed, but got {precision}")
    if not isinstance(devices, ListConfig) and not re.fullmatch(_DEVICES, str(devices)):
        raise UserError(f"trainer.devices must be how many, a list such as [0,1], or auto, but got {devices}")
    if trainer.get("limit_test_batches") == 0:
        raise UserError("trainer.limit_test_batches=0 leaves nothing to test; leave it out")
