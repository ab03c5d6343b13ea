"""The Python interface: images in, anomaly maps and decisions out. The numbers are those of `src.predict`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import Tensor
from typing_extensions import Self

from datamodules.errors import UserError, reason_of
from datamodules.images import UNREADABLE, from_array, from_picture
from datamodules.options import check_line
from datamodules.photos import Photos, PhotoTransform, Warnings, collate_photos, open_photo
from src import environment
from src.calibration import Calibration, Decisions, as_number, images_needed
from src.cli import one_line
from src.clip.backbone import BackboneSource
from src.config import validate
from src.models.method import Features, FewShotMethod, Method
from src.overrides import CONF, data_set_of
from src.run import build
from src.run.trained_weights import Origin, read_trained_weights
from src.run.trainer import effective_precision
from src.scoring import Memory, Scorer, at_own_size
from src.targets import walk

ImageLike: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any] | Tensor"
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_END = object()
_CLASSES = (("model", "_target_"), ("prompts", "_target_"))  # the only classes that a file may name,
_OWN = r"src\.models\.\w+\.\w+"  # and where they come from
_OWN_DATA = r"datamodules\.(mvtec|visa|folder|demo\.data)\.\w+"  # whose modules are imported
_BY_NAME = "open it by from_experiment(NAME, ckpt_path=FILE)"


class Prediction(NamedTuple):
    """What is found in an image.

    Attributes:
        anomaly_map: (H, W) float32 at the image's own size, any range; larger is more anomalous.
        single_score: of the image on its own, any range; larger is more anomalous.
        is_anomalous: whether the score is above the threshold; None without a threshold.
        p_value: the share of images without defects that score as high; None without a calibration.
        category: what the object was called.
    """

    anomaly_map: npt.NDArray[np.float32]
    single_score: float
    is_anomalous: bool | None
    p_value: float | None
    category: str


class AnomalyDetector:
    """Finds anomalies in images of an object that is known by its name only.

    `from_experiment` and `from_weights` make one. It may be used by several threads at once.

    Args:
        config: a validated configuration of `src.predict`.
        threshold: a number, or the path of a calibration.json; None decides on nothing.
        backbone_sha256: that the backbone's weights must have; None for any.

    Attributes:
        method: the method with its weights.
        calibration: the thresholds by category; None if there are none.

    Raises:
        UserError: one line, as the commands say it.

    Example:
        >>> from src import AnomalyDetector
        >>> detector = AnomalyDetector.from_experiment("sdp_demo")
        >>> [prediction] = detector.predict(np.zeros((120, 160, 3), np.uint8), category="metal nut")
        >>> prediction.anomaly_map.shape, prediction.category, prediction.is_anomalous
        ((120, 160), 'metal nut', None)
    """

    def __init__(
        self,
        config: DictConfig,
        threshold: str | Path | float | None = None,
        backbone_sha256: str | None = None,
    ) -> None:
        environment.compute_in_float32()
        self._config = config
        clip = build.find_backbone(config)
        with _told():
            self._photos: Photos = build.make_data(config.test_data, clip)  # type: ignore[assignment]
        self._photos.check_options()
        self._clip: BackboneSource = build.find_weights(config, clip)
        _check_backbone(self._clip, backbone_sha256)
        self._references = build.open_references(config, self._clip, self._photos)
        # The caller's random numbers are the caller's. A GPU that nobody uses is not started for them.
        with isolate_rng(include_cuda=torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            self.method: Method = build.build_method(config, self._clip, self._references)
        self.origin = build.load_weights(config, self.method, self._clip)
        self.method.eval()
        self.calibration: Calibration | None = None
        self._decisions: Decisions | None = None
        self._transform = PhotoTransform(
            self._photos.image_size, self._photos.mean, self._photos.std, self._photos.tile, self._photos.overlap
        )
        dtype = getattr(torch, config.feature_cache.dtype)
        # A single image need not wait for a batch that is filled up, as in src.predict of a single file.
        self._single, self._scorer = (
            Scorer(self.method, rows, dtype, self._photos.mean, self._photos.std)
            for rows in (1, self._photos.batch_size)
        )
        self._memory: Memory | None = None
        if self._references is not None:
            assert isinstance(self.method, FewShotMethod)
            self._memory = Memory(self.method, self._references, dtype)
        self._warnings = Warnings()
        self._texts: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._device = torch.device("cpu")
        threshold = config.threshold if threshold is None else threshold
        if threshold is not None:
            self.use_threshold(threshold)

    @classmethod
    def from_experiment(
        cls,
        experiment: str,
        *,
        ckpt_path: str | Path | None = None,
        overrides: Sequence[str] = (),
        threshold: str | Path | float | None = None,
    ) -> Self:
        """Make the detector of an experiment, as `python -m src.predict +exp=NAME` does.

        Args:
            experiment: such as `sdp_plus_visa`, a file of `conf/exp`.
            ckpt_path: trained parameters, where the method has some.
            overrides: as on the command line, such as `["tile=518", "trainer.precision=bf16-mixed"]`.
            threshold: a number, or the path of a calibration.json.

        Raises:
            UserError: there is no such experiment, key or file.

        Example:
            >>> detector = AnomalyDetector.from_experiment("sdp_demo", overrides=["seed=7"], threshold=99)
            >>> [one.is_anomalous for one in detector.predict([np.zeros((9, 9))] * 3, category="coin")]
            [False, False, False]
        """
        return cls(_composed([f"+exp={experiment}", *overrides], ckpt_path=ckpt_path), threshold)

    @classmethod
    def from_weights(
        cls, file: str | Path, *, overrides: Sequence[str] = (), threshold: str | Path | float | None = None
    ) -> Self:
        """Open a released `.safetensors` of trained parameters: its header names method, prompts and backbone.

        Args:
            file: what a training has left, such as `sdp_plus.trained_on_visa.safetensors`.
            overrides: as on the command line, such as `["backbone.pretrained=/path/to/clip.bin"]`.
            threshold: a number, or the path of a calibration.json.

        Raises:
            UserError: the file does not say what it belongs to, or that is not here.
        """
        path = Path(file).expanduser()
        origin = read_trained_weights(path).origin
        config = _composed(overrides, ckpt_path=path, origin=_checked(origin, path))
        return cls(config, threshold, origin["backbone"]["sha256"])

    def to(self, device: str | torch.device) -> Self:
        """Move it to a device, such as `cuda`. Not while another thread predicts.

        Raises:
            UserError: there is no such device, or the calibration does not belong to the precision there.
        """
        with self._lock:
            try:
                self.method.to(device)
            except (RuntimeError, AssertionError) as error:  # torch's, of a device that is not there
                raise UserError(f"can't move to the device {device}: {reason_of(error)}") from error
            self._device = torch.device(device)
            self._texts.clear()
            if self._memory is not None:
                self._memory.clear()
            if self.calibration is not None:
                self._take(self.calibration)  # the precision may be another there
        return self

    def predict(
        self, images: ImageLike | Iterable[ImageLike], category: str | Sequence[str] | None = None
    ) -> list[Prediction]:
        """Predict one or many images.

        Args:
            images: a path, a Pillow image, an array or a tensor; or several of these in a list, a generator, or a 4-D
                array or tensor. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), whose alpha is dropped; uint8,
                uint16, or floating point in [0, 1]. Tensors are (H, W) or (C, H, W).
            category: what the object is called: one text for all images, or one for each. None calls each path as the
                folder that it lies in.

        Raises:
            UserError: an image can't be read, or is none; the message says which.
        """
        return list(self.iterate(images, category))

    def iterate(
        self, images: ImageLike | Iterable[ImageLike], category: str | Sequence[str] | None = None
    ) -> Iterator[Prediction]:
        """Predict image after image, as `predict` does; no more than a batch of them is in memory."""
        for score, anomaly_map, size, name in self._scored(images, category):
            own = at_own_size(anomaly_map, size).cpu().numpy()
            yield Prediction(own, score, *self._decide(name, score), name)

    def calibrate(
        self, good_images: ImageLike | Iterable[ImageLike], category: str, max_false_alarms: float = 0.01
    ) -> Calibration:
        """Find the thresholds of a category from images without defects, and decide by them from now on.

        Args:
            good_images: as `predict` takes them.
            category: what the object is called.
            max_false_alarms: of new images without defects, at most so many are called anomalous.

        Returns:
            The calibration of all categories so far; `write(path)` keeps it for `threshold=`.

        Raises:
            UserError: there are too few images.

        Example:
            >>> detector = AnomalyDetector.from_experiment("sdp_demo")
            >>> good = list(np.random.default_rng(0).random((4, 30, 30, 3)))
            >>> detector.calibrate(good, "coin", max_false_alarms=0.2).categories["coin"].n
            4
            >>> detector.predict(good[0], "coin")[0].is_anomalous
            False
        """
        images_needed(max_false_alarms)
        scored = [(score, float(one.max())) for score, one, _, _ in self._scored(good_images, category)]
        values = {category: ([score for score, _ in scored], [highest for _, highest in scored])}
        new = Calibration.of(values, max_false_alarms, self._belongs_to())
        with self._lock:  # another thread may calibrate another category
            earlier = self.calibration.categories if self.calibration else {}
            self._take(Calibration(new.belongs_to, {**earlier, **new.categories}))
            assert self.calibration is not None
            return self.calibration

    def use_threshold(self, threshold: str | Path | float) -> None:
        """Decide by a number, or by a calibration.json.

        Raises:
            UserError: the file is missing, damaged or belongs to other settings.
        """
        number = as_number(threshold if isinstance(threshold, float) else str(threshold))
        if number is not None:
            self.calibration, self._decisions = None, Decisions(number)
        else:
            self._take(Calibration.read(Path(str(threshold)).expanduser()))

    def _take(self, calibration: Calibration) -> None:
        self._decisions = Decisions.from_calibration(calibration, self._belongs_to(), list(calibration.categories))
        self.calibration = calibration

    def _belongs_to(self) -> dict[str, Any]:
        known = build.calibrated_for(self._config, self.method, self._clip, self._photos, self._references)
        return known | {"precision": effective_precision(self._trainer)}

    def _decide(self, category: str, score: float) -> tuple[bool | None, float | None]:
        decisions = self._decisions
        if decisions is None:
            return None, None
        if decisions.number is None and category not in decisions.calibration:
            raise UserError(
                f"the calibration is of {', '.join(decisions.calibration)}, but not of {category}; calibrate on images "
                "of it, or give the same category"
            )
        return decisions.is_anomalous(category, score), decisions.p_value(category, score)

    def _scored(
        self, images: ImageLike | Iterable[ImageLike], category: str | Sequence[str] | None
    ) -> Iterator[tuple[float, Tensor, tuple[int, int], str]]:
        """Single score, map, size and category of image after image."""
        named = _named(images, category)
        while some := list(islice(named, 1 if self._photos.tile else self._photos.batch_size)):
            samples = []
            for number, image, name in some:
                photo = _photo(image, number, self._photos.bits, self._warnings)
                samples.append({**self._transform(photo), "category": name, "image_path": f"image {number}"})
            batch = collate_photos(samples)
            batch["image"] = batch["image"].to(self._device)
            with torch.inference_mode(), self._precision():
                is_single = len(some) == 1 and some[0][0] == 0 and not self._photos.tile
                scorer = self._single if is_single else self._scorer
                categories = batch["category"]
                references = self._features_of_references(categories)
                scores, maps = scorer(batch, self._text(categories), references)
            for row, score in enumerate(scores.single_score.tolist()):
                yield score, maps[row].float(), batch["size"][row], batch["category"][row]

    def _text(self, categories: Sequence[str]) -> Tensor:
        """Text features (B, D, 2), each category's made once."""
        with self._lock:  # making those of a category drops the ones that were made before
            for name in categories:
                if name not in self._texts:
                    self.method.text.prepare([name], self._photos.prompt_set)
                    self._texts[name] = self.method.text([name])[0]
            return torch.stack([self._texts[name] for name in categories])

    def _features_of_references(self, categories: Sequence[str]) -> Sequence[Features] | None:
        """See `FewShotMethod`."""
        if self._memory is None:
            return None
        with self._lock:
            self._memory.references.check([*self._texts, *categories])
            return self._memory.of(categories, self._device)

    @property
    def _trainer(self) -> DictConfig:
        """What decides the precision: that of the device it is on, not of the best one of the machine."""
        accelerator = "cpu" if self._device.type == "cpu" else "gpu"
        return OmegaConf.merge(self._config.trainer, {"accelerator": accelerator})  # type: ignore[return-value]

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(effective_precision(self._trainer))
        return torch.autocast(self._device.type, dtype=dtype) if dtype else nullcontext()


def _check_backbone(clip: BackboneSource, expected: str | None) -> None:
    """Refuse other weights than a file was trained with, before they are loaded.

    Raises:
        UserError: they are others.
    """
    found = clip.weights.sha256
    if expected is not None and expected != found:
        raise UserError(
            f"the file was trained with the backbone weights of sha256 {expected[:12]}..., but {clip.weights.path} has "
            f"{str(found)[:12]}...; give its own by overrides=['backbone.pretrained=FILE']"
        )


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line, as the commands do, what Hydra says in many.

    Raises:
        UserError: the block raises what is a user's mistake.
    """
    try:
        yield
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        raise UserError(line) from error


@contextmanager
def _apart() -> Iterator[None]:
    """Let a configuration be composed within another program of Hydra's, too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def _composed(
    overrides: Sequence[str], ckpt_path: str | Path | None = None, origin: dict[str, Any] | None = None
) -> DictConfig:
    """The configuration of a prediction, without what only a run has.

    Raises:
        UserError: an override is none, or a value is not possible.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if own := sorted(given & {"source", "category"}):
        raise UserError(f"{', '.join(own)}: images and their category are arguments of predict; leave it out")
    with _told(), _apart():
        config = compose("predict", [*overrides, "paths.output_dir=."])
        data_set = data_set_of(overrides)
    OmegaConf.set_struct(config, False)
    config.logger, config.callbacks = None, None  # they have values only inside a run
    config.source, config.category = ".", "object"
    if ckpt_path is not None:
        config.ckpt_path = str(ckpt_path)
    if origin is not None:
        _settle(config, origin, given)
    return validate(config, "predict", data_set or (origin or {}).get("tested_on"))


def _settle(config: DictConfig, origin: Mapping[str, Any], given: Collection[str]) -> None:
    """Take method, prompts and backbone from what a file says about itself, but for what the caller has given.

    Raises:
        UserError: the caller has given what the file decides.
    """
    own = sorted(key for key in given if key.startswith(("model", "prompts")))
    if own:
        raise UserError(f"{', '.join(own)}: the file says which method and prompts it was trained with; leave it out")
    config.model, config.prompts = origin["model"], origin["prompts"]
    for key, value in origin["clip"].items():
        if f"backbone.{key}" not in given and "backbone" not in given:
            config.backbone[key] = value
    if "test_data.image_size" not in given:
        config.test_data.image_size = origin.get("image_size")


def _checked(origin: Origin, path: Path) -> dict[str, Any]:
    """What a file says about itself, which may be a stranger's: plain values, and classes of this project.

    Raises:
        UserError: it does not say enough, or names other classes.
    """
    missing = [key for key in ("model", "prompts", "backbone") if not origin.get(key)]
    if not missing and not origin["backbone"]["sha256"]:
        missing = ["weights of a backbone"]  # they were random
    if missing:
        raise UserError(f"{path} does not say which {' and '.join(missing)} it belongs to; {_BY_NAME}")
    content: dict[str, Any] = dict(origin)
    named = origin["backbone"]
    known = {"name": named.get("name"), "pretrained": named.get("tag") or named.get("file")}
    content.setdefault("clip", {**known, "config": None})
    for keys, value in walk(content):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path}: {'.'.join(keys)} must be a plain value, but is '{value}'")
        if keys and keys[-1].startswith("_") and keys not in _CLASSES:  # what Hydra would call, or call with
            raise UserError(f"{path}: {'.'.join(keys)} is nothing that a training writes; {_BY_NAME}")
    if re.fullmatch(_OWN_DATA, str(content.get("tested_on"))) is None:  # its module would be imported
        content.pop("tested_on", None)
    for keys in _CLASSES:
        target = str(content[keys[0]].get("_target_"))
        if re.fullmatch(_OWN, target) is None:
            raise UserError(f"{path} names the class {target}; {_BY_NAME}")
    return content


def _named(
    images: ImageLike | Iterable[ImageLike], category: str | Sequence[str] | None
) -> Iterator[tuple[int, ImageLike, str]]:
    """Number, image and category of image after image."""
    many = _many(images)
    if category is not None and (isinstance(category, bytes) or not isinstance(category, Iterable)):
        raise UserError(f"expected category as a text, or one for each image, but got {category!r}")
    names: Iterator[Any] = repeat(category) if category is None or isinstance(category, str) else iter(category)
    for number, image in enumerate(many):
        name = next(names, _END)
        if name is _END:
            raise UserError(f"expected a category for each image, but there is none for image {number}")
        if name is None:
            if not isinstance(image, (str, Path)):
                raise UserError(f"image {number}: expected category=..., what the object is called, but got none")
            name = Path(image).absolute().parent.name
        check_line(str(name))
        yield number, image, str(name)
    if category is not None and not isinstance(category, str) and next(names, _END) is not _END:
        raise UserError("expected a category for each image, but there are more categories than images")


def _many(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Several images, also of one."""
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return [images] if images.ndim != 4 else iter(images)
    if not isinstance(images, Iterable):
        raise UserError(f"expected images as paths, Pillow images, arrays or tensors, but got {type(images).__name__}")
    return images


def _photo(image: ImageLike, number: int, bits: int | None, warn: Callable[[str], None]) -> Image.Image:
    """Any image as one of 8 bits, `L` or `RGB`.

    Raises:
        UserError: it can't be read, or is none.
    """
    name = f"image {number}"
    if isinstance(image, (str, Path)):
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{name}: expected an image, but {path} is a folder; give its files, or use src.predict")
        return open_photo(path, bits, warn)
    if isinstance(image, Image.Image):
        try:
            return from_picture(ImageOps.exif_transpose(image), name, bits, warn)
        except UNREADABLE as error:
            raise UserError(f"{name}: can't read it ({error}); fetch it again") from error
    if isinstance(image, Tensor):
        if image.is_meta or image.layout is not torch.strided:
            raise UserError(f"{name}: expected a dense tensor with values, but got {image.layout} on {image.device}")
        values = image.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        image = (values.movedim(0, -1) if values.ndim == 3 else values).numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name}: expected a path, a Pillow image, an array or a tensor, got {type(image).__name__}")
    return from_array(image, name, bits, warn)
