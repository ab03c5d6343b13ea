"""Every change that this project makes to the process it runs in, and why. Nothing heavy is imported here at once."""

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
    r"The number of training batches .* is smaller than the logging interval",  # the epoch's mean is logged anyway
)


def before_composing() -> None:
    """Have Hydra's help answer at once, and joblib's own helper be quiet.

    For its help, Hydra copies a repository, and the store of structured configs with it, once a config group: most of
    the time it takes. All repositories share the one store now, which they only read.

    When a signal ends the workers of a sweep, a process of joblib's removes what they leave, and warns of it. It has
    this process's environment.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    if quiet not in os.environ.get("PYTHONWARNINGS", ""):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - mypy refuses the assignment


def before_running() -> None:
    """Import Lightning, and then undo what it and torch decide for the process.

    Warnings become a line each, without the place in the code that they come from: they are for the user. Those that
    say nothing about the run are left out. TensorFloat-32 keeps 10 bits of a float32, so it is off: a run that says 32
    computes in 32.
    """
    import lightning  # noqa: F401 - it sets a format of warnings of its own
    import torch

    warnings.formatwarning = _one_line
    for pattern in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    torch.backends.cudnn.allow_tf32 = False


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
