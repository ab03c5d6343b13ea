"""From a validated configuration to the objects of a run: a small function each, called in the order of their cost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.references import References, drawn_references, given_references
from src.anomaly_module import AnomalyModule, ClassSet
from src.arrays import checksum
from src.calibration import Calibration, Decisions, as_number, check_number
from src.clip.backbone import Backbone, BackboneSource, describe_text_tower
from src.clip.backbone import find_backbone as look_up
from src.clip.sentence_cache import SentenceCache
from src.config import check_training, plain, shortcuts, training_shortcuts
from src.files import sha256_of
from src.metrics.own import OwnMetric
from src.models.method import FewShotMethod, Method
from src.run import provenance
from src.run.folder import RunFolder
from src.run.protocol import Protocol, describe_use, shared_categories
from src.run.results import WeightsRecord
from src.run.trackers import identity
from src.run.trained_weights import Origin, load_trained_weights, read_trained_weights
from src.run.trainer import build_trainer as build_trainer
from src.run.trainer import effective_precision
from src.targets import walk


def open_folder(config: DictConfig) -> RunFolder:
    """The folder that the run writes to: new, or that of a run which is resumed.

    Raises:
        UserError: it holds a finished run, or another one.
    """
    return RunFolder(Path(HydraConfig.get().runtime.output_dir), plain(config))


def find_backbone(config: DictConfig) -> BackboneSource:
    """Look the CLIP up: its architecture, and how it wants its images. Nothing is loaded or downloaded.

    Raises:
        UserError: there is none of that name.

    Example:
        >>> from src.config import BackboneConfig
        >>> own = OmegaConf.structured(BackboneConfig(name="ViT-B-16"))
        >>> find_backbone(OmegaConf.create({"backbone": own, "test_data": {"image_size": 240}})).architecture.grid_size
        15
    """
    return _look_up(config.backbone, config.test_data.get("image_size"), downloads=False)


def find_weights(config: DictConfig, clip: BackboneSource) -> BackboneSource:
    """The same CLIP with its weights' file, which is downloaded if it is not here.

    Raises:
        UserError: it is not here and can't be downloaded.
    """
    return _look_up(config.backbone, clip.architecture.image_size)


def _look_up(wanted: DictConfig, image_size: int | None, downloads: bool = True) -> BackboneSource:
    return look_up(
        wanted.name,
        wanted.pretrained,
        wanted.config,
        image_size,
        quick_gelu=wanted.quick_gelu,
        position_resize=wanted.position_resize,
        downloads=downloads,
    )


def build_data(node: DictConfig, clip: BackboneSource, val_categories: Sequence[str] = ()) -> AnomalyDataModule:
    """A data module with the image size, mean and deviation of the CLIP. Its folders are read, so errors show at once.

    Raises:
        UserError: anything that is wrong with the options or the files' names.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     Path(root, "0.jpg").touch()
        ...     node = OmegaConf.create({"_target_": "datamodules.folder.Folder", "root": root})
        ...     data = build_data(node, look_up("ViT-B-16", pretrained=None))
        ...     print(len(data.records), data.image_size)
        1 224
    """
    data = make_data(node, clip, val_categories)
    data.setup("fit")
    return data


def make_data(node: DictConfig, clip: BackboneSource, val_categories: Sequence[str] = ()) -> AnomalyDataModule:
    """A data module whose folders are not read yet, see `build_data`."""
    images = {"image_size": clip.architecture.image_size, "mean": clip.weights.mean, "std": clip.weights.std}
    data: AnomalyDataModule = instantiate(node, **images, val_categories=list(val_categories))
    return data


def build_train_data(config: DictConfig, clip: BackboneSource) -> AnomalyDataModule | None:
    """The auxiliary data, if there are any.

    Raises:
        UserError: as `build_data`.
    """
    if config.train_data is None:
        return None
    return build_data(config.train_data, clip, config.val_categories)


def find_references(config: DictConfig, clip: BackboneSource, data: AnomalyDataModule) -> References | None:
    """The reference images of a few-shot run; None of a zero-shot one. Their names are looked up, no image is opened.

    Raises:
        UserError: a category has none, or too few.
    """
    references = open_references(config, clip, data)
    if references is not None:
        references.check(data.category_names)
    return references


def open_references(config: DictConfig, clip: BackboneSource, data: AnomalyDataModule) -> References | None:
    """The same without knowing the categories, if they are given; those of a draw have to be known.

    Raises:
        UserError: there are none.
    """
    if config.references is not None:
        images = {"image_size": data.image_size, "mean": data.mean, "std": data.std, "bits": data.bits}
        return given_references(config.references, is_upright=data.is_upright, **images)
    if not config.shots:
        return None
    node = config.test_data.copy()
    node.split, node.shard = "train", None
    train_split = make_data(node, clip)
    seed, replacement = config.reference_seed, config.reference_replacement
    return drawn_references(train_split, data.category_names, config.shots, seed, replacement)


def build_method(config: DictConfig, clip: BackboneSource, references: References | None = None) -> Method:
    """The method with its frozen CLIP. What is not loaded, such as new projections, is drawn with the run's seed.

    Raises:
        UserError: the weights don't fit, a setting of the method is out of range, or it takes no references, or can't
            do without.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    sentences = None  # random weights differ in each run, so their embeddings are not kept
    if clip.weights.sha256 is not None:
        folder = Path(config.paths.cache_dir).expanduser() / "text"
        sentences = SentenceCache(folder, describe_text_tower(clip, clip.weights.sha256))
    backbone = Backbone(clip, sentences, config.backbone.compile)
    with told_of("prompts"):
        prompts = instantiate(config.prompts)
    with told_of("model"):
        method: Method = instantiate(config.model, backbone=backbone, prompts=prompts)
    if references is not None and not isinstance(method, FewShotMethod):
        given = "references" if config.references is not None else "shots"
        raise UserError(f"model {method.name} takes no reference images; leave out {given}")
    if references is None and isinstance(method, FewShotMethod) and method.needs_references:
        raise UserError(
            f"model {method.name} needs reference images: give shots=4, say, to draw them from the benchmark's train "
            "split, or references=PATH, an image, a folder, a pattern or a CSV of images without defects"
        )
    return method


@contextmanager
def told_of(node: str) -> Iterator[None]:
    """Turn a ValueError about an argument into the user's line, with the path of its key.

    Raises:
        UserError: the block raises a ValueError, or Hydra because of one.

    Example:
        >>> with told_of("model"):
        ...     raise ValueError("smoothing_sigma must be 0 or more pixels, but got -1")
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: model.smoothing_sigma must be 0 or more pixels, but got -1
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{node}.{error}") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise UserError(f"{node}.{error.__cause__}") from error
        raise


def origin_of(config: DictConfig, method: Method, clip: BackboneSource, train_data: AnomalyDataModule | None) -> Origin:
    """The origin to write with the trained parameters; if none are trained, the origin of the loaded ones.

    Raises:
        UserError: the data can't train the method; or see `load_weights`.
    """
    if not method.trainable_parameters():
        return load_weights(config, method, clip)
    if train_data is None:
        raise UserError(
            f"model {method.name} trains, but there is no train_data; add data@train_data=visa (or mvtec), "
            "or test trained parameters with src.eval and ckpt_path=FILE"
        )
    if not train_data.has_masks:
        raise UserError(f"model {method.name} trains on masks, but {train_data.title} in {train_data.root} has none")
    if config.ckpt_path:
        raise UserError(
            "ckpt_path is for src.eval and src.predict, training starts from new parameters; to resume a run, give "
            "its folder as paths.output_dir"
        )
    if config.val_categories and isinstance(method, FewShotMethod) and method.needs_references:
        raise UserError(
            f"model {method.name} needs reference images, which held-out categories have not; leave out val_categories"
        )
    check_training(config)
    return Origin(
        model=plain(config)["model"],
        prompts=plain(config)["prompts"],
        backbone=_describe_backbone(clip),
        clip={key: value for key, value in config.backbone.items() if key != "compile"},
        image_size=clip.architecture.image_size,
        tested_on=str(config.test_data["_target_"]),
        trained_on=describe_use(train_data),
        cut_short_by=training_shortcuts(config.trainer),
    )


def load_weights(config: DictConfig, method: Method, clip: BackboneSource) -> Origin:
    """Load trained parameters if the method has any, and return what they say about themselves.

    Raises:
        UserError: there are none, or they don't fit.
    """
    if not config.ckpt_path:
        if method.trainable_parameters():
            raise UserError(
                f"model {method.name} needs trained parameters: give ckpt_path=FILE (a run's checkpoints/last.ckpt or "
                f"{method.name}.trained_on_*.safetensors, or its authors' file), or train them with src.train"
            )
        return Origin()
    path = Path(config.ckpt_path).expanduser()
    weights = read_trained_weights(path)
    load_trained_weights(method, weights, path)
    _warn_of_other_settings(weights.origin, config, clip)
    return weights.origin


def check_calibration(config: DictConfig, images: AnomalyDataModule, references: References | None = None) -> None:
    """Refuse a calibration that can't keep its promise, before anything is computed.

    Raises:
        UserError: a category has too few images, or some are reference images.
    """
    if images.shard is not None:
        raise UserError("test_data.shard: a calibration takes all images; leave it out")
    for category, count in Counter(record.category for record in images.records).items():
        check_number(category, count, config.max_false_alarms)
    if references is not None and not config.allow_leakage:
        references.refuse_tested(images.records)
    files = [record.image_path for record in images.records if record.image_path.is_file()]
    copies = len(files) - len(set(map(sha256_of, files)))
    if copies:
        rank_zero_warn(
            f"{copies} of {len(files)} images are copies of others: the promise holds for different images, so remove "
            "them"
        )


def calibrated_for(
    config: DictConfig,
    method: Method,
    clip: BackboneSource,
    data: AnomalyDataModule,
    references: References | None = None,
) -> dict[str, Any]:
    """What decides the scores of images, beside the images: a calibration belongs to it.

    Raises:
        UserError: the backbone's weights are random, so they are others in each run.
    """
    if clip.weights.sha256 is None:
        raise UserError("a calibration takes a backbone with weights: random ones are others in each run")
    own = plain(config)
    tile = getattr(data, "tile", None)
    named = {key for keys, _ in walk(own["model"]) for key in keys}
    trained = [checksum(name, value.detach()) for name, value in sorted(method.trainable_parameters().items())]
    return {
        # Fusion is what only a benchmark has.
        "model": {key: value for key, value in own["model"].items() if not key.endswith("fusion")},
        "prompts": own["prompts"],
        # A name that no setting of the method mentions makes no difference.
        "prompt_set": data.prompt_set if data.prompt_set in named else None,
        "backbone": {
            "name": clip.architecture.name,
            "sha256": clip.weights.sha256,
            "quick_gelu": clip.weights.quick_gelu,
            "position_resize": clip.position_resize,
            "config": hashlib.sha256(json.dumps(clip.config, sort_keys=True).encode()).hexdigest(),
        },
        "trained": hashlib.sha256("".join(trained).encode()).hexdigest() if trained else None,
        "references": references.sha256 if references else None,
        "image_size": data.image_size,
        "tile": tile,
        "overlap": data.overlap if tile else None,  # type: ignore[attr-defined]
        "bits": data.bits,
        "precision": effective_precision(config.trainer),
        "frozen_dtype": str(config.feature_cache.dtype),
    }


def read_decisions(
    config: DictConfig,
    method: Method,
    clip: BackboneSource,
    data: AnomalyDataModule,
    references: References | None = None,
) -> Decisions | None:
    """The thresholds of the run; None if it has none.

    Raises:
        UserError: the calibration is damaged, or belongs to something else.
    """
    if config.threshold is None:
        return None
    number = as_number(config.threshold)
    if number is not None:
        return Decisions(number)
    belongs_to = calibrated_for(config, method, clip, data, references)
    path = Path(str(config.threshold)).expanduser()
    return Decisions.from_calibration(Calibration.read(path), belongs_to, data.category_names, f"threshold={path}")


def describe_decisions(config: DictConfig, decisions: Decisions | None, data: AnomalyDataModule) -> dict[str, Any]:
    """The thresholds of a run, for provenance.json."""
    if decisions is None:
        return {}
    is_number = decisions.number is not None
    return {
        "calibration": None if is_number else {"sha256": sha256_of(Path(str(config.threshold)).expanduser())},
        "decisions": {
            name: {
                "score_threshold": decisions.score_threshold(name),
                "map_threshold": decisions.map_threshold(name),
                "max_false_alarms": None if is_number else decisions.calibration[name].alpha,
            }
            for name in data.category_names
        },
    }


def build_protocol(
    config: DictConfig,
    method: Method,
    origin: Origin,
    test_data: AnomalyDataModule,
    train_data: AnomalyDataModule | None = None,
    references: References | None = None,
) -> Protocol:
    """What is trained and tested."""
    part = [f"test_data.shard={test_data.shard}"] if test_data.shard else []
    return Protocol(
        bool(method.trainable_parameters()),
        origin.get("trained_on"),
        describe_use(test_data),
        shared=shared_categories(train_data, test_data) if train_data else {},
        shortcuts=[*shortcuts(config.trainer), *part],
        tests=config.test,
        trained_under=() if train_data else origin.get("cut_short_by", ()),
        shots=references.number if references else 0,
    )


def check_test(
    config: DictConfig, protocol: Protocol, test_data: AnomalyDataModule, references: References | None = None
) -> None:
    """Refuse a test that can't be made or would be of images that the method has seen, before anything is computed.

    Raises:
        UserError: there is nothing to test, or it belongs to the training data, or to the references.
    """
    if not (test_data.has_labels or test_data.has_masks):
        raise UserError(f"{test_data.title} has neither labels nor masks, so there is nothing to test; use src.predict")
    if not (config.test or protocol.trainable):
        raise UserError("test=false leaves nothing to do where nothing is trained; leave it out")
    if not config.allow_leakage:
        protocol.refuse_leakage()
        if references is not None:
            references.refuse_tested(test_data.records)


def build_module(
    config: DictConfig,
    folder: RunFolder,
    protocol: Protocol,
    method: Method,
    origin: Origin,
    test_data: AnomalyDataModule,
    train_data: AnomalyDataModule | None = None,
    decisions: Decisions | None = None,
    references: References | None = None,
) -> AnomalyModule:
    """The LightningModule: the method with its metrics and, where it trains, its optimizer."""
    names = test_data.category_names
    return AnomalyModule(
        method,
        protocol.line,
        test_classes=ClassSet(names, test_data.prompt_set),
        num_test_images=Counter(record.category for record in test_data.tested_records),
        is_part=test_data.shard is not None,
        train_classes=ClassSet(train_data.category_names, train_data.name) if train_data else None,
        val_categories=list(config.val_categories) if train_data else [],
        optimizer=instantiate(config.optimizer) if train_data else None,
        origin=origin,
        metrics_memory_gb=config.metrics_memory_gb,
        own_metrics=_own_metrics(config),
        thresholds={name: decisions.score_threshold(name) for name in names} if decisions else None,
        references=references,
        frozen_dtype=getattr(torch, config.feature_cache.dtype),
        run_id=folder.run_id,
    )


def _own_metrics(config: DictConfig) -> dict[str, OwnMetric]:
    """The user's metrics by name. `level` says what a metric gets; all other keys are its own."""
    metrics = {}
    for name, node in (config.metrics or {}).items():
        options = OmegaConf.masked_copy(node, [key for key in node if key != "level"])
        with told_of(f"metrics.{name}"):
            metrics[str(name)] = OwnMetric(node.level, partial(instantiate, options))
    return metrics


def describe(
    config: DictConfig,
    clip: BackboneSource,
    trainer: Trainer,
    module: AnomalyModule,
    protocol: Protocol,
    test_data: AnomalyDataModule,
    train_data: AnomalyDataModule | None = None,
    references: References | None = None,
) -> dict[str, Any]:
    """What is known before the run, for provenance.json."""
    used = {"test": test_data} | ({"train": train_data} if train_data else {})
    data = {
        role: {**one.fingerprint(), "missing_categories": one.missing_categories, "published": one.is_published}
        for role, one in used.items()
    }
    checkpoint = config.ckpt_path
    return {
        "kind": HydraConfig.get().job.config_name,
        "command": provenance.describe_command(),
        "identity": identity(protocol.trained_on),
        "protocol": protocol.describe(),
        "fusion": module.fusion,
        "seed": config.seed,
        "code": provenance.describe_code(),
        "packages": provenance.describe_packages(),
        "device": provenance.describe_device(trainer),
        "data": data,
        "backbone": _describe_backbone(clip),
        "wandb": next(({"id": one.version} for one in trainer.loggers if isinstance(one, WandbLogger)), None),
        "checkpoint": {"file": checkpoint, "sha256": sha256_of(Path(checkpoint).expanduser())} if checkpoint else None,
        "references": references.describe() if references else None,
    }


def _warn_of_other_settings(origin: Origin, config: DictConfig, clip: BackboneSource) -> None:
    """Projections fit any tower and tap of their shape, but mean something only where they were trained."""
    own = plain(config)
    for node, earlier in (("model", origin.get("model", {})), ("prompts", origin.get("prompts", {}))):
        keys = sorted(earlier.keys() | own[node].keys()) if earlier else ()
        changed = [f"{node}.{key}" for key in keys if earlier.get(key) != own[node].get(key)]
        if changed:
            rank_zero_warn(f"{config.ckpt_path} was trained with another {' and '.join(changed)}")
    if origin.get("backbone") and origin["backbone"]["sha256"] != clip.weights.sha256:
        rank_zero_warn(f"{config.ckpt_path} was trained with other backbone weights ({origin['backbone']['file']})")


def _describe_backbone(clip: BackboneSource) -> WeightsRecord:
    """Which CLIP it is, by the hash of its weights' file."""
    path = clip.weights.path
    return {
        "name": clip.architecture.name,
        "tag": clip.weights.tag,
        "file": str(path) if path else None,
        "sha256": clip.weights.sha256,
    }
