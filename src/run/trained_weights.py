"""What training changed, on disk: this project's two formats and the checkpoint files of the methods' authors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict

from datamodules.errors import UserError, reason_of
from src.files import checked, parsed, write_bytes
from src.models.method import Method
from src.run.results import DataUse, WeightsRecord

ORIGIN = "origin"
_METHOD_PREFIX = "method."
_FLOATING = [str(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]


class Origin(TypedDict, total=False):
    """What trained parameters say about themselves; a file of a method's authors says nothing.

    `model`, `prompts`, `backbone` and `image_size` are what they were trained with, `clip` is the configuration of the
    backbone, `trained_on` the data and `tested_on` the class of the benchmark, `cut_short_by` are the settings that cut
    the training short, `epochs` how many were done.
    """

    model: dict[str, Any]
    prompts: dict[str, Any]
    backbone: WeightsRecord
    clip: dict[str, str | bool | None]
    image_size: int
    tested_on: str
    trained_on: DataUse
    cut_short_by: list[str]
    epochs: int


class TrainedWeights(NamedTuple):
    """Trained parameters, and where they come from.

    Attributes:
        state: the parameters, by their name in the method; of an authors' file, by their name there.
        origin: what was written with them.
        authors_key: under which an authors' file holds them; None for a file of this project.
    """

    state: dict[str, Tensor]
    origin: Origin
    authors_key: str | None = None


def write_trained_weights(path: Path, method: Method, origin: Origin) -> None:
    """Write the trained parameters alone, to hand to others (safetensors; the origin stands in its header).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from src.clip.backbone import Backbone, find_backbone
        >>> from src.models.prompts import Prompts
        >>> from src.models.sdp_plus import SDPPlus
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = SDPPlus(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.safetensors")
        ...     write_trained_weights(path, method, Origin(epochs=5))
        ...     weights = read_trained_weights(path)
        ...     load_trained_weights(method, weights, path)
        >>> weights.origin, len(weights.state)  # a weight and a bias for each of 4 levels
        ({'epochs': 5}, 8)
    """
    state = {name: p.detach().cpu().contiguous() for name, p in method.trainable_parameters().items()}
    check_finite(state)
    write_bytes(path, save(state, metadata={ORIGIN: json.dumps(origin)}))


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are NaN or infinite: with them every score would be NaN.

    Raises:
        UserError: some are NaN or infinite.

    Example:
        >>> check_finite({"projections.0.weight": torch.tensor([1.0, torch.nan])})
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: the trained weights are not finite (projections.0.weight), so they are not written
    """
    broken = [name for name, values in state.items() if not values.isfinite().all()]
    if broken:
        raise UserError(f"the trained weights are not finite ({_some(broken)}), so they are not written")


def read_trained_weights(path: Path) -> TrainedWeights:
    """Read a Lightning checkpoint, a `.safetensors` of this project, or a file of a method's authors.

    Raises:
        UserError: there is no such file, it is none of the three, or it holds something else than trained weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "authors.pth")
        ...     torch.save({"linear_layers": {"fc.0.weight": torch.zeros(2, 2)}}, path)
        ...     print(read_trained_weights(path).authors_key)
        linear_layers
    """
    if not path.is_file():
        raise UserError(f"ckpt_path: expected a file, but there is none at {path}")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    if weights.authors_key is None:  # their files hold more than the parameters
        for name, tensor in weights.state.items():
            _check_tensor(name, tensor, path)
    return weights


def _read_checkpoint(path: Path) -> TrainedWeights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many types
        raise UserError(f"ckpt_path: can't read {path}: {reason_of(error)}") from error
    if _holds_tensors(content, "state_dict"):
        state = {k.removeprefix(_METHOD_PREFIX): v for k, v in content["state_dict"].items()}
        return TrainedWeights(state, checked(content.get(ORIGIN, {}), Origin, path))
    for key in content if isinstance(content, dict) else ():
        if isinstance(key, str) and _holds_tensors(content, key):
            return TrainedWeights(dict(content[key]), Origin(), authors_key=key)
    raise UserError(
        f"ckpt_path: expected a Lightning checkpoint, a .safetensors of trained parameters, or the file of a method's "
        f"authors, but {path} is none of them"
    )


def load_trained_weights(method: Method, weights: TrainedWeights, path: Path) -> None:
    """Put trained parameters into a method that has exactly these.

    Raises:
        UserError: another number of levels, another shape, another method's file, or a method that trains nothing.
    """
    own = method.trainable_parameters()
    if not own:
        raise UserError(
            f"ckpt_path: model {method.name} has nothing to train, so {path} can't be used; remove ckpt_path"
        )
    _check_class(method, weights.origin, path)
    state = _from_authors(method, weights, path) if weights.authors_key else weights.state
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        raise UserError(f"ckpt_path: {path} does not fit the model: {_first_difference(expected, found)}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def _check_class(method: Method, origin: Origin, path: Path) -> None:
    """Refuse another method's parameters, which may have the same names and shapes.

    Raises:
        UserError: they were trained by a class that the method neither is nor is derived from.
    """
    trained = str(origin.get("model", {}).get("_target_", "")).rpartition(".")[2]
    if trained and trained not in [one.__name__ for one in type(method).__mro__]:
        raise UserError(
            f"ckpt_path: {path} was trained as {trained}, but model {method.name} is {type(method).__name__}; choose "
            "the model that it was trained as"
        )


def _from_authors(method: Method, weights: TrainedWeights, path: Path) -> dict[str, Tensor]:
    """The parameters of an authors' file by their names in the method.

    Raises:
        UserError: it is another method's, or its content does not fit.
    """
    if weights.authors_key != method.authors_key:
        wanted = f"hold them under '{method.authors_key}'" if method.authors_key else "are not known"
        raise UserError(
            f"ckpt_path: {path} holds '{weights.authors_key}', but the authors' files of model {method.name} {wanted}; "
            "choose the file's model"
        )
    try:
        state = method.from_authors(weights.state)
    except ValueError as error:
        raise UserError(f"ckpt_path: {path} does not fit the model: {error}") from error
    for name, tensor in state.items():
        _check_tensor(name, tensor, path)
    return state


def _read_safetensors(path: Path) -> TrainedWeights:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(ORIGIN, "{}")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own, and torch's for a type that it does not know
        raise UserError(f"ckpt_path: can't read {path}: {reason_of(error)}") from error
    return TrainedWeights(state, parsed(header, Origin, path))


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse what torch would turn into numbers that nobody has trained.

    Raises:
        UserError: the tensor is of integers, say, or has not all its values, or some are not finite.
    """
    kind = "meta" if tensor.is_meta else str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)
    if kind not in _FLOATING:
        raise UserError(f"ckpt_path: expected floating-point numbers in {name} of {path}, but got {kind}")
    if not tensor.isfinite().all():
        raise UserError(f"ckpt_path: {path} has values in {name} that are not finite; its training has failed")


def _holds_tensors(content: Any, key: str) -> bool:
    """Whether a file's content is a dictionary with named tensors under `key`."""
    tensors = content.get(key) if isinstance(content, dict) else None
    return (
        isinstance(tensors, dict)
        and bool(tensors)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items())
    )


Shapes = dict[str, tuple[int, ...]]


def _first_difference(expected: Shapes, found: Shapes) -> str:
    """Say what is wrong with the shapes, in the words of `feature_layers` and the backbone."""
    if len(expected) != len(found) or expected.keys() != found.keys():
        return (
            f"expected {len(expected)} tensors ({_some(expected)}), found {len(found)} ({_some(found)}); "
            "the options of the model, such as the number of feature_layers, must be those of the training"
        )
    name = next(name for name in expected if expected[name] != found[name])
    return (
        f"{name} has shape {found[name]}, expected {expected[name]}; it was trained with another backbone or other "
        "options of the model"
    )


def _some(names: Collection[str]) -> str:
    """The first names of many."""
    first = list(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
