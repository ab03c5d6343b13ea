"""The LightningModule of every method: calls, logging, the optimizer. No maths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from datamodules.base import AnomalyDataModule
from datamodules.dataset import Batch
from datamodules.errors import UserError, reason_of
from datamodules.references import References
from src.metrics.benchmark_metrics import BenchmarkMetrics, BenchmarkResult
from src.metrics.exchange import is_shared
from src.metrics.functional import needs_all_images
from src.metrics.own import OwnMetric
from src.models.maps import resize_like
from src.models.method import Features, FewShotMethod, Method, Scores, Targets
from src.processes import gather_rows, is_first
from src.run.checkpoints import LAST_CHECKPOINT
from src.run.trained_weights import ORIGIN, Origin, check_finite
from src.scoring import Memory, Scorer, check_scores, features_of, score

RUN = "run"  # in a checkpoint: which run it is of
FILLER = "is_filler"  # a batch that is only there so that this process takes part
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class ClassSet(NamedTuple):
    """The classes of one data set.

    Example:
        >>> ClassSet(["bottle", "metal_nut"], data_set="mvtec").names
        ['bottle', 'metal_nut']
    """

    names: Sequence[str]
    data_set: str


class AnomalyModule(LightningModule):
    """Trains and tests a method.

    Args:
        method: SDP, SDP+ or another.
        line: what is trained and tested, for those that show results.
        test_classes: classes of the test data.
        num_test_images: how many images each test class has. After its last image a class is evaluated, and its maps
            are released.
        is_part: whether this is a part of an evaluation, which computes no metrics.
        train_classes: classes of the training data, held-out ones included; None where nothing is trained.
        val_categories: the classes that validate.
        optimizer: makes the optimizer from the trainable parameters; None where nothing is trained.
        origin: what the trained parameters say about themselves.
        metrics_memory_gb: the memory that the exact pixel metrics of a class may take; see `BenchmarkMetrics`.
        own_metrics: the user's metrics, by name; see `BenchmarkMetrics`.
        thresholds: of the score of a test image alone, by class; see `BenchmarkMetrics`.
        references: the reference images of the test classes; None where there are none.
        frozen_dtype: what frozen features are rounded to, whether they are kept on disk or not.
        run_id: names the run, also when it is resumed; the run's checkpoints hold it.

    Attributes:
        fusion: how a test fuses the terms.
        results: the metrics of the last test.
        test_metrics: the scores of the last test, until the next one.
    """

    results: BenchmarkResult

    def __init__(
        self,
        method: Method,
        line: str,
        *,
        test_classes: ClassSet,
        num_test_images: Mapping[str, int],
        is_part: bool = False,
        train_classes: ClassSet | None = None,
        val_categories: Sequence[str] = (),
        optimizer: OptimizerFactory | None = None,
        origin: Origin | None = None,
        metrics_memory_gb: float | None = None,
        own_metrics: Mapping[str, OwnMetric] | None = None,
        thresholds: Mapping[str, float] | None = None,
        references: References | None = None,
        frozen_dtype: torch.dtype = torch.float32,
        run_id: str = "",
    ) -> None:
        super().__init__()
        self.method = method
        self.line = line
        self.test_classes = test_classes
        self.num_test_images = num_test_images
        self.is_part = is_part
        self.train_classes = train_classes
        self.optimizer_factory = optimizer
        self.origin = origin or Origin()
        self.frozen_dtype = frozen_dtype
        self.run_id = run_id
        self.fusion, self.memory = method.fusion, None
        if references is not None:
            assert isinstance(method, FewShotMethod)
            self.fusion = method.few_shot_fusion or method.fusion
            self.memory = Memory(method, references, frozen_dtype)
        options = (metrics_memory_gb, own_metrics)
        self.val_metrics = BenchmarkMetrics(val_categories, method.terms, method.fusion, *options)
        self.test_metrics = BenchmarkMetrics(test_classes.names, method.terms, self.fusion, *options, thresholds)
        self.strict_loading = False  # checkpoints hold the trained parameters only

    @property
    def fusion_rule(self) -> str | None:
        """How a test fuses an image's scores; None for a part that has not all the images which the rule needs."""
        return None if self.is_part and needs_all_images(self.fusion) else self.fusion

    def forward(self, batch: Batch) -> Scores:
        """Score a batch, with references if there are some.

        Raises:
            UserError: a score is not finite; a ranking with such a score would mean nothing.
        """
        return self._score(batch, self._references(batch))

    def _score(self, batch: Batch, references: Sequence[Features] | None = None) -> Scores:
        scores = score(self.method, self._features(batch), self.method.text(batch["category"]), references)
        check_scores(self.method, scores, batch["image_path"])
        return scores

    def _references(self, batch: Batch) -> Sequence[Features] | None:
        return None if self.memory is None else self.memory.of(batch["category"], self.device)

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer of the trainable parameters.

        Raises:
            UserError: it does not accept its settings.
        """
        assert self.optimizer_factory is not None
        try:
            return self.optimizer_factory(self.method.trainable_parameters().values())
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {reason_of(error)}") from error

    def on_fit_start(self) -> None:
        """Embed the training classes; the module is on its device by now."""
        assert self.train_classes is not None
        self._prepare(self.train_classes)

    def on_test_start(self) -> None:
        """Embed the classes of the images to test or to score."""
        self._prepare(self.test_classes)
        self.test_metrics.reset()
        if self.memory is not None:
            self.memory.clear()

    on_predict_start = on_test_start

    def _prepare(self, classes: ClassSet) -> None:
        try:
            self.method.text.prepare(*classes)
        except ValueError as error:
            raise UserError(f"model.{error}") from error

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The method's loss on a batch; with several processes, this process's part of it.

        Raises:
            UserError: it is not finite. All processes find the same.
        """
        targets = Targets(batch.get("mask"), batch.get("label"))
        losses = self.method.loss(self._features(batch), self.method.text(batch["category"]), targets)
        count = 0 if FILLER in batch else len(batch["category"])
        weight, losses_of_step, images = self._share_of_step(losses, count)
        if not losses_of_step["loss"].isfinite():
            self._refuse_step(batch, losses["loss"])
        for name, value in losses_of_step.items():
            self.log(f"train/{name}", value, on_step=True, on_epoch=True, prog_bar=name == "loss", batch_size=images)
        return losses["loss"] * weight

    def _refuse_step(self, batch: Batch, loss: Tensor) -> None:
        """Stop the training; the first process tells it for all."""
        names = gather_rows([] if loss.isfinite() else list(batch["image_path"]))
        if not is_first():
            raise SystemExit(1)
        raise UserError(
            f"the loss of step {self.trainer.global_step + 1} is not finite, on {', '.join(names)}; {self._way_on}"
        )

    @property
    def _way_on(self) -> str:
        """What to do when numbers are not finite any more."""
        last = Path(self.trainer.default_root_dir) / LAST_CHECKPOINT
        kept = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
        return f"{kept}; try a lower optimizer.lr or trainer.gradient_clip_val=1, or look at these images"

    def _share_of_step(self, losses: dict[str, Tensor], count: int) -> tuple[float, dict[str, Tensor], int]:
        """The weight of this process's `count` images, the losses over the images of all, and how many these are.

        Gradients are averaged over processes, which is the mean over all images only if each process is weighed by
        its images.
        """
        processes = self.trainer.world_size
        if processes == 1:
            return 1.0, losses, count
        sums = torch.stack([*(value.detach() * count for value in losses.values()), losses["loss"].new_tensor(count)])
        *totals, images = self.trainer.strategy.reduce(sums, reduce_op="sum").unbind()
        means = {name: total / images for name, total in zip(losses, totals, strict=True)}
        return count * processes / float(images), means, int(images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of held-out categories to their metrics; these have no references."""
        if FILLER not in batch:
            self._update(self.val_metrics, batch, self._score(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the means over the held-out categories as `val/<name>`."""
        self.log_dict({f"val/{name}": value for name, value in self.val_metrics.compute()["mean"].items()})
        self.val_metrics.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """Add a batch to the metrics and hand its scores to the callbacks, with its maps at the masks' size."""
        if FILLER in batch:
            return None
        scores = self(batch)
        compared = self._update(self.test_metrics, batch, scores)
        if not (self.is_part or is_shared()):
            for name in set(batch["category"]):
                if self.test_metrics.num_images[name] == self.num_test_images[name]:
                    self.test_metrics.finish(name)  # and release its maps: 4 bytes a pixel
        return {"scores": scores, "compared_map": compared}

    def on_test_epoch_end(self) -> None:
        """Compute the metrics and log their means as `test/<name>`; a part has none."""
        if not self.is_part:
            self.results = self.test_metrics.compute()
            self.log_dict({f"test/{name}": value for name, value in self.results["mean"].items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any] | None:
        """Hand a batch's scores and maps to the callbacks; of photos that can't be read there are none."""
        if FILLER in batch or not batch["category"]:
            return None
        if "size" not in batch:
            scores = self(batch)
            return {"scores": scores, "maps": list(scores.anomaly_map)}
        scores, maps = self.scorer(batch, self.method.text(batch["category"]), self._references(batch))
        return {"scores": scores, "maps": maps}

    @property
    def scorer(self) -> Scorer:
        """Scores photos."""
        data: AnomalyDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = data.batch_rows("test", self.trainer.world_size)
        return Scorer(self.method, rows, self.frozen_dtype, data.mean, data.std)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out, and say where the trained parameters come from.

        Raises:
            UserError: a parameter is not finite. All processes have the same.
        """
        trained = {f"method.{name}" for name in self.method.trainable_parameters()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        try:
            check_finite(checkpoint["state_dict"])
        except UserError as error:
            if not is_first():
                raise SystemExit(1) from error
            raise UserError(f"{error}, after step {self.trainer.global_step}; {self._way_on}") from error
        checkpoint[ORIGIN] = self.origin | {"epochs": self.current_epoch + 1}
        checkpoint[RUN] = self.run_id

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume this run and no other.

        Raises:
            UserError: the checkpoint is another run's.
        """
        if checkpoint.get(RUN) != self.run_id:
            last = Path(self.trainer.default_root_dir) / LAST_CHECKPOINT
            raise UserError(f"{last} is of another run; put this run's back, or choose another paths.output_dir")

    def _features(self, batch: Batch) -> Features:
        """Those of a batch that brings them, or else those of its images; of frozen ones the same to the last digit."""
        served: Features | None = batch.get("features")
        if served is not None:
            return {name: values.float() for name, values in served.items()}
        data: AnomalyDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = data.batch_rows("train" if self.trainer.training else "test", self.trainer.world_size)
        return features_of(self.method, batch["image"], rows, self.frozen_dtype)

    def _update(self, metrics: BenchmarkMetrics, batch: Batch, scores: Scores) -> Tensor | Sequence[Tensor] | None:
        """Compare at the masks' size; labels or masks may be absent. Return the maps at that size."""
        mask = batch.get("mask")
        maps = resize_like(scores.anomaly_map, mask) if mask is not None else None
        label, is_empty = batch.get("label"), batch.get("mask_is_empty")
        metrics.update(batch["category"], scores.terms, scores.single_score, label, maps, mask, is_empty)
        return maps
