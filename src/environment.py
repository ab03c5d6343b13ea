"""Changes that hold for the whole process, and why: warnings, TensorFloat-32, Hydra's help.

Nothing heavy is imported here at once.
"""

from __future__ import annotations

import os
import warnings

from hydra.core.config_store import ConfigStore

_USELESS_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
    r"Found \d+ module\(s\) in eval mode",  # the frozen CLIP
    r"Total length of `list` across ranks is zero",  # no validation, as the paper trains
    r"It is recommended to use `self.log\(.*sync_dist=True",  # what is logged is the same in all processes already
    r"Checkpoint directory .* exists and is not empty",  # a resumed run's
    r"The '.*_dataloader' does not have many workers",  # null follows the cores, and a number is the user's choice
    r"predict returned None if it was on purpose",  # a batch of photos that can't be read
    r"The number of training batches .* is smaller than the logging interval",  # the epoch's mean is logged anyway
)


def before_composing() -> None:
    """Make Hydra's `--help` fast, and silence a warning of joblib.

    For its help, Hydra copies the store of structured configs once for each config group, which takes most of the
    time. Here all copies are the same store, which Hydra only reads.

    When a signal ends the workers of a sweep, a helper process of joblib removes their files and warns of it. It
    inherits this process's environment.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    if quiet not in os.environ.get("PYTHONWARNINGS", ""):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - mypy refuses the assignment


def before_running() -> None:
    """Import Lightning, and then change what it and torch have set for the process.

    Warnings are for the user: each becomes one line without its place in the code, and those that say nothing about the
    run are left out. A run whose precision is 32 computes in float32.
    """
    import lightning  # noqa: F401 - it sets a format of warnings of its own

    warnings.formatwarning = _one_line
    for pattern in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    compute_in_float32()


def compute_in_float32() -> None:
    """Turn TensorFloat-32 off, which keeps 10 bits of a float32's fraction: precision 32 computes in float32.

    For convolutions it is torch's default. For matrix products the environment of a container or the caller may have
    asked for it.

    Example:
        >>> compute_in_float32()
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
