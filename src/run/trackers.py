"""The loggers of a run: what it is called in W&B, and whether W&B can be reached."""

from __future__ import annotations

import netrc
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from datamodules.errors import reason_of
from src.anomaly_module import AnomalyModule
from src.overrides import typed
from src.processes import is_first
from src.run.folder import RunFolder, decides
from src.run.results import Identity
from src.sweeps.trial import sweep_name

_PATIENCE = 3.0  # seconds for W&B's host to answer
_LONGEST_NAME = 128
_LONGEST_TAG = 64
_LAST_WORDS = 60.0  # seconds for what is left to send when a run ends


def build_loggers(config: DictConfig, folder: RunFolder, module: AnomalyModule) -> list[Logger]:
    """Build the configured loggers. One of W&B gets the run's id, name, group, job type and tags where it has none.

    A part of an evaluation has none of W&B: the whole is one run there, see `src.run.merge`.
    """
    nodes = [node for node in (config.logger or {}).values() if node is not None]
    return [_build_logger(node, folder, module) for node in nodes if not (module.is_part and is_wandb(node))]


def is_wandb(node: Mapping[str, Any]) -> bool:
    """Whether a logger's node is of W&B.

    Example:
        >>> is_wandb({"_target_": "lightning.pytorch.loggers.WandbLogger"})
        True
    """
    return str(node.get("_target_", "")).endswith("WandbLogger")


def _build_logger(node: DictConfig, folder: RunFolder, module: AnomalyModule) -> Logger:
    logger: Logger
    if is_wandb(node):
        own = identity(module.origin.get("trained_on"))
        logger = instantiate(node, **wandb_arguments(node, own, folder.run_id, folder.path), _convert_="all")
    else:
        logger = instantiate(node)
    return logger


def wandb_arguments(node: Mapping[str, Any], own: Identity, run_id: str, folder: Path) -> dict[str, Any]:
    """What a run of W&B is given beside its node: what the node leaves open, and whether it has to stay offline."""
    defaults = {"id": run_id, **{key: own[key] for key in ("name", "group", "job_type", "tags")}}
    given: dict[str, Any] = {key: value for key, value in defaults.items() if not node.get(key)}
    if not node.get("offline") and (reason := why_offline()):
        given["offline"] = True
        sync = f"wandb sync {folder / 'wandb'}/offline-run-*"
        rank_zero_warn(f"W&B is offline: {reason}; send the run later by: {sync}")
    if given.get("offline") or node.get("offline"):
        given["mode"] = "offline"  # WandbLogger says it by an environment variable, which W&B reads once a process
    if is_first():
        import wandb  # a second, which only those wait for who use it

        # Silent, since the command says itself what the run is, and where.
        if not node.get("settings"):  # provenance has the commit; the diff and the remote's name are nobody's business
            given["settings"] = wandb.Settings(silent=True, finish_timeout=_LAST_WORDS, disable_git=True)
        wandb.setup(wandb.Settings(silent=True))
    return given


def identity(trained_on: Mapping[str, Any] | None) -> Identity:
    """What the run that Hydra has composed is called.

    Args:
        trained_on: the data that trained its parameters, see `src.run.results.DataUse`; None if there are none.
    """
    hydra = HydraConfig.get()
    chosen = [typed(override).lstrip("+~") for override in hydra.overrides.task]
    groups = [hydra.runtime.choices.get(group) for group in ("model", "data@test_data", "backbone")]
    named = next((own.removeprefix("exp=") for own in chosen if own.startswith("exp=")), None)
    experiment = named or "_".join(map(str, groups[:2]))
    changed = [_short(own) for own in chosen if not own.startswith("exp=") and decides(own.partition("=")[0])]
    trained = [f"trained on {trained_on['name']}"] if trained_on else []
    return Identity(
        experiment=experiment,
        name=_name(experiment, changed),
        group=sweep_name() or experiment,
        job_type=str(hydra.job.config_name),
        tags=[tag[:_LONGEST_TAG] for tag in (*map(str, groups), *trained)],
    )


def _name(experiment: str, changed: Sequence[str]) -> str:
    """An experiment and what was changed of it; if W&B has no room for all, what was typed last."""
    name = " ".join([experiment, *changed])
    return name[:_LONGEST_NAME] if len(name) <= _LONGEST_NAME or not changed else _name(experiment, changed[1:])


def _short(override: str) -> str:
    """An override with the last part of a path, and no more than tells runs apart."""
    key, _, value = override.partition("=")
    return f"{key}={value.rpartition('/')[2]}"[:60]


def why_offline() -> str | None:
    """Why W&B can't be used online; None if it can, or if the environment says that it shall not.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {"WANDB_MODE": "offline"}):
        ...     why_offline()
        'WANDB_MODE=offline'
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    import wandb  # which knows the address that `wandb login --host` has set

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.base_url)
    host = address.hostname or "api.wandb.ai"
    if not _has_key(host):
        return "there is no API key (wandb login)"
    if getproxies():  # through which W&B finds its way, and a plain connection does not
        return None
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{host} can't be reached ({reason_of(error)})"
    return None


def _has_key(host: str) -> bool:
    """Whether W&B would find a key without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
