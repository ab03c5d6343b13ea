"""A run's folder: new, unfinished (then it is resumed) or finished (then it is left alone)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from src.files import write_json
from src.report.provenance import PROVENANCE_FILE, now

LAST_CHECKPOINT = "checkpoints/last.ckpt"
# What may change between a run and its continuation: it says how to compute and where to write, not what.
_FREE_KEYS = ("paths", "logger", "callbacks")
_FIXED_TRAINER_KEYS = ("max_epochs", "precision")


class RunFolder:
    """The folder a run writes to.

    Args:
        path: Hydra's output folder of this run.
        config: the resolved configuration.

    Raises:
        UserError: a finished run is there, or an unfinished one of another configuration.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        earlier = self._read_provenance()
        if earlier.get("finished"):
            raise UserError(
                f"{path} holds a finished run of {earlier['finished']}; choose another paths.output_dir or remove it"
            )
        changed = _changed_keys(_identity(earlier["config"]), _identity(config)) if earlier else []
        if changed:
            raise UserError(
                f"{path} holds an unfinished run of another configuration (it differs in {', '.join(changed)}); "
                "give the same options to resume it, or another paths.output_dir"
            )
        self.provenance: dict[str, Any] = {"started": now(), "resumed": [], "finished": None, "config": config}
        if earlier:
            self.provenance |= {"started": earlier["started"], "resumed": [*earlier["resumed"], now()]}

    @property
    def checkpoint_to_resume(self) -> Path | None:
        """The unfinished run's last checkpoint, if it got that far."""
        path = self.path / LAST_CHECKPOINT
        return path if self.provenance["resumed"] and path.is_file() else None

    def write(self, **entries: Any) -> None:
        """Add entries to provenance.json and write it."""
        self.provenance |= entries
        write_json(self.path / PROVENANCE_FILE, self.provenance)

    def finish(self) -> None:
        """Mark the run as finished; from now on the folder is refused."""
        self.write(finished=now())

    def _read_provenance(self) -> dict[str, Any]:
        try:
            content = json.loads((self.path / PROVENANCE_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(
                f"can't read {self.path / PROVENANCE_FILE} ({error}); choose another paths.output_dir"
            ) from error
        return dict(content)


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the numbers, as flat dotted keys."""
    fixed = {key: value for key, value in config.items() if key not in (*_FREE_KEYS, "trainer")}
    fixed["trainer"] = {key: config["trainer"].get(key) for key in _FIXED_TRAINER_KEYS}
    return _flat(json.loads(json.dumps(fixed)))


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _changed_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    missing = object()
    return sorted(key for key in one.keys() | other.keys() if one.get(key, missing) != other.get(key, missing))
