"""From a configuration to the objects of a run, checked in the order of their cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.anomaly_module import AnomalyModule, ClassSet
from src.clip.backbone import Backbone, BackboneSource, describe_text_tower, find_backbone
from src.clip.sentence_cache import SentenceCache
from src.features.cache import FeatureCache
from src.features.setup import open_feature_cache
from src.files import sha256_of
from src.models.method import Method
from src.run import provenance
from src.run.folder import RunFolder
from src.run.protocol import Protocol, describe_use, shared_categories
from src.run.results import STATE_FILE, Weights
from src.run.trained_weights import Origin, load_trained_weights, read_trained_weights
from src.run.trainer import build_trainer, check_training_settings, shortcuts, training_shortcuts


@dataclass
class Run:
    """The objects of a run.

    Attributes:
        config: the validated configuration.
        folder: where the run writes.
        protocol: what is trained and tested.
        test_data: the benchmark, or the images to score.
        train_data: the auxiliary data; None if nothing is to be trained.
        module: the method with its metrics and optimizer.
        trainer: Lightning's trainer, with loggers and callbacks.
        features: the frozen features on disk; or why there are none, if the user should know.
    """

    config: DictConfig
    folder: RunFolder
    protocol: Protocol
    test_data: AnomalyDataModule
    train_data: AnomalyDataModule | None
    module: AnomalyModule
    trainer: Trainer
    features: FeatureCache | str | None


def assemble(config: DictConfig, *, with_training: bool) -> Run:
    """Build a run: the folder first, then the data, the weights' file, the weights, and the trainer.

    Args:
        config: a validated configuration.
        with_training: whether to train the model, if it has anything to train; otherwise `train_data` is not opened.

    Raises:
        UserError: whatever the user has to mend before anything is computed.
    """
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), plain(config))
    if config.trainer.get("limit_test_batches") == 0:
        raise UserError("trainer.limit_test_batches=0 leaves nothing to test; leave it out")
    test_data = _build_data(config.test_data)
    train_data = _build_data(config.train_data, config.val_categories) if with_training else None
    assert test_data is not None
    source = _find_backbone(config, test_data, train_data)
    backbone = _describe_backbone(source)
    seed_everything(config.seed, workers=True, verbose=False)
    clip = Backbone(source, _sentence_cache(config, source, backbone["sha256"]), config.backbone.compile)
    method: Method = instantiate(config.model, backbone=clip, prompts=instantiate(config.prompts))
    trainable = bool(method.trainable_parameters())
    if not trainable:
        train_data = None
    if trainable and with_training:
        origin = Origin(
            model=plain(config)["model"],
            prompts=plain(config)["prompts"],
            backbone=backbone,
            trained_on=describe_use(_training_data(method, train_data, config)),
            cut_short_by=training_shortcuts(config.trainer),
        )
    else:
        origin = _load_weights(config, method, backbone)
    protocol = Protocol(
        trainable,
        origin.get("trained_on"),
        describe_use(test_data),
        shared=shared_categories(train_data, test_data) if train_data else {},
        shortcuts=[*shortcuts(config.trainer), *([f"test_data.shard={test_data.shard}"] if test_data.shard else [])],
        tests=config.test,
        trained_under=() if train_data else origin.get("cut_short_by", ()),
    )
    state_file = folder.path / STATE_FILE if test_data.shard else None
    module = AnomalyModule(
        method,
        optimizer=instantiate(config.optimizer),
        train_classes=ClassSet(train_data.category_names, train_data.dbscan) if train_data else None,
        test_classes=ClassSet(test_data.category_names, test_data.dbscan),
        val_categories=list(config.val_categories) if train_data else [],
        num_test_images={} if state_file else Counter(record.category for record in test_data.records),
        metrics_memory_gb=config.metrics_memory_gb,
        origin=origin,
        state_file=state_file,
        frozen_dtype=getattr(torch, config.feature_cache.dtype),
        run_id=folder.run_id,
    )
    trainer = build_trainer(
        config, folder.path, test_data.image_names, trains=train_data is not None, run_id=folder.run_id
    )
    if state_file:
        _check_part(trains=train_data is not None, processes=trainer.world_size)
    features = open_feature_cache(config, source, backbone["sha256"], method, trainer, trains=train_data is not None)
    run = Run(config, folder, protocol, test_data, train_data, module, trainer, features)
    folder.describe(**_describe(run, backbone))
    return run


def _check_part(*, trains: bool, processes: int) -> None:
    """A part of an evaluation is a job of its own, beside which others do the rest.

    Raises:
        UserError: it would train, as all the others, or share its part.
    """
    if trains:
        raise UserError("test_data.shard is for src.eval and src.predict; train first, then test with ckpt_path=FILE")
    if processes > 1:
        raise UserError("test_data.shard is for jobs of one process each; set trainer.devices=1, and take more shards")


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain dictionaries, interpolations resolved."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _build_data(node: DictConfig | None, val_categories: list[str] | None = None) -> AnomalyDataModule | None:
    """Instantiate a data module and read its folders, so that what is wrong with them is said before all else."""
    if node is None:
        return None
    data: AnomalyDataModule = instantiate(node, val_categories=list(val_categories or ()))
    data.setup("fit")
    return data


def _find_backbone(
    config: DictConfig, test_data: AnomalyDataModule, train_data: AnomalyDataModule | None
) -> BackboneSource:
    """Look the backbone up, and let the data give images as it wants them."""
    used = [data for data in (test_data, train_data) if data is not None]
    sizes = {data.image_size for data in used}
    if len(sizes) > 1:
        raise UserError(
            f"test_data.image_size ({test_data.image_size}) and train_data.image_size must agree, but got {sizes}; "
            "set both, or neither"
        )
    wanted = config.backbone
    source = find_backbone(wanted.name, wanted.pretrained, wanted.config, sizes.pop())
    for data in used:
        data.image_size, data.mean, data.std = source.architecture.image_size, source.weights.mean, source.weights.std
    return source


def _sentence_cache(config: DictConfig, source: BackboneSource, weights_sha256: str | None) -> SentenceCache | None:
    """Where the text tower's embeddings are kept; random weights, new in each run, have none."""
    if weights_sha256 is None:
        return None
    return SentenceCache(
        Path(config.paths.cache_dir).expanduser() / "text", describe_text_tower(source, weights_sha256)
    )


def _training_data(method: Method, train_data: AnomalyDataModule | None, config: DictConfig) -> AnomalyDataModule:
    """The data to train on, which has to be there, with masks; and training starts from nothing."""
    if train_data is None:
        raise UserError(
            f"model {method.name} trains, but there is no train_data; add data@train_data=visa (or mvtec), "
            "or test trained projections with src.eval and ckpt_path=FILE"
        )
    if not train_data.has_masks:
        raise UserError(f"model {method.name} trains on masks, but {train_data.title} in {train_data.root} has none")
    if config.ckpt_path:
        raise UserError(
            "ckpt_path is for src.eval and src.predict, training starts from new projections; to resume a run, give "
            "its folder as paths.output_dir"
        )
    check_training_settings(config)
    return train_data


def _load_weights(config: DictConfig, method: Method, backbone: Weights) -> Origin:
    """Load trained parameters if there are any to load, and say where they come from."""
    if not config.ckpt_path:
        if method.trainable_parameters():
            raise UserError(
                f"model {method.name} needs trained projections: give ckpt_path=FILE (a run's checkpoints/last.ckpt or "
                f"{method.name}.trained_on_*.safetensors, or the reference's file), or train them with src.train"
            )
        return Origin()
    path = Path(config.ckpt_path).expanduser()
    weights = read_trained_weights(path)
    load_trained_weights(method, weights, path)
    _warn_of_other_settings(weights.origin, config, backbone)
    return weights.origin


def _warn_of_other_settings(origin: Origin, config: DictConfig, backbone: Weights) -> None:
    """Projections fit any tower and tap of their shape, but mean something only where they were trained."""
    own = plain(config)
    for node, earlier in (("model", origin.get("model", {})), ("prompts", origin.get("prompts", {}))):
        keys = sorted(earlier.keys() | own[node].keys()) if earlier else ()
        changed = [f"{node}.{key}" for key in keys if earlier.get(key) != own[node].get(key)]
        if changed:
            rank_zero_warn(f"{config.ckpt_path} was trained with another {' and '.join(changed)}")
    if origin.get("backbone") and origin["backbone"]["sha256"] != backbone["sha256"]:
        rank_zero_warn(f"{config.ckpt_path} was trained with other backbone weights ({origin['backbone']['file']})")


def _describe_backbone(source: BackboneSource) -> Weights:
    """Which CLIP it is, by the hash of its weights' file."""
    path = source.weights.path
    return {
        "name": source.architecture.name,
        "tag": source.weights.tag,
        "file": str(path) if path else None,
        "sha256": sha256_of(path) if path else None,
    }


def _describe(run: Run, backbone: Weights) -> dict[str, Any]:
    """What is known before the run, for provenance.json."""
    checkpoint = run.config.ckpt_path
    data = {"test": run.test_data, "train": run.train_data}
    return {
        "kind": HydraConfig.get().job.config_name,
        "command": provenance.describe_command(),
        "protocol": run.protocol.describe(),
        "seed": run.config.seed,
        "code": provenance.describe_code(),
        "packages": provenance.describe_packages(),
        "device": provenance.describe_device(run.trainer),
        "data": {
            role: {**used.fingerprint(), "missing_categories": used.missing_categories}
            for role, used in data.items()
            if used is not None
        },
        "backbone": backbone,
        "checkpoint": {"file": checkpoint, "sha256": sha256_of(Path(checkpoint).expanduser())} if checkpoint else None,
    }
