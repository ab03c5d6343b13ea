# B = images of a batch; N = images of the category; T = terms
"""Image-level metrics of one category."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.metrics.base import CpuMetric, joined, points_of, summarise
from src.metrics.exchange import gathered
from src.metrics.functional import CurvePoints, check_fusion, exact_curve, fuse
from src.metrics.functional.arguments import as_scores, as_truth, check_ndim, check_shape


class ImageMetrics(CpuMetric):
    """AUROC, AP and F1-max of one category's images: of the fused image score, and of the score of each image alone.

    Most fusions need all images of the category, so the terms are kept (on the CPU, a few numbers an image) and fused
    in `compute`, where several processes gather them; see `CurveMetric`.

    Args:
        terms: the names of the image-level terms, in the method's order.
        fusion: how they are fused, one of `src.metrics.functional.FUSIONS`.
        threshold: an image whose single score is above it is called anomalous; None if none was given.
        kwargs: see `torchmetrics.Metric`.

    Attributes:
        points: the curves of the last `compute`, `image` of the fused score and `single` of the other.

    Raises:
        ValueError: if there is no such fusion, or it does not fit the terms.

    Example:
        >>> import torch
        >>> metrics = ImageMetrics(["cls_score", "map_max"], "min_max_sum")
        >>> terms = {"cls_score": torch.tensor([0.1, 0.2, 0.7]), "map_max": torch.tensor([3.0, 1.0, 5.0])}
        >>> metrics.update(terms, single_score=torch.tensor([3.1, 1.2, 5.7]), label=torch.tensor([0, 0, 1]))
        >>> result = metrics.compute()
        >>> result["image_AUROC"], result["image_F1Max_threshold"], result["single_F1Max_threshold"]
        (1.0, 2.0, 5.699999809265137)
    """

    full_state_update = False

    scores: list[Tensor]  # (B, T + 1) each: the terms, then the single score
    label: list[Tensor]

    def __init__(self, terms: Sequence[str], fusion: str, threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        check_fusion(terms, fusion)
        self.terms, self.fusion = tuple(terms), fusion
        self.threshold = threshold
        self.points: dict[str, CurvePoints] = {}
        for state in ("scores", "label"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, terms: Mapping[str, Tensor], single_score: Tensor, label: Tensor) -> None:
        """Add images.

        Args:
            terms: name -> (B,) floating point, finite, any range.
            single_score: (B,) floating point, finite, any range: the score of each image on its own.
            label: (B,) {0, 1}; 1 is anomalous.

        Raises:
            ValueError: if a term is missing or unknown, a score is not finite, or shapes, dtypes or values don't fit.
        """
        if set(terms) != set(self.terms):
            raise ValueError(f"Expected argument `terms` to have {list(self.terms)}, but got {list(terms)}.")
        check_ndim(single_score, "single_score", 1)
        columns = {name: terms[name] for name in self.terms} | {"single_score": single_score}
        for name, value in [*columns.items(), ("label", label)]:
            check_shape(value, name, single_score, "single_score")
        scores = [as_scores(value, name) for name, value in columns.items()]
        # Copied, or a caller who fills the same tensors again would change the states.
        self.label.append(as_truth(label, "label").clone())
        self.scores.append(torch.stack(scores, dim=1))

    def fused(self) -> tuple[Tensor, Tensor]:
        """Return the image score (N,) float64 and the label (N,) bool of all images, in whichever process."""
        terms, single_score, label = self._gathered()
        return fuse(terms, single_score, self.fusion), label

    def compute(self) -> dict[str, float]:
        """Return AUROC, AP, F1Max in [0, 1] and F1Max_threshold, in the score's range: of the fused one as `image_*`,
        of the score of each image alone as `single_*`. With a threshold also the rates `escapes`, of the anomalous
        images, and `false_alarms`, of the normal ones.

        What needs a class that is missing is absent.
        """
        terms, single_score, label = self._gathered()
        scores = {"image": fuse(terms, single_score, self.fusion), "single": single_score}
        curves = {name: exact_curve(values[label], values[~label]) for name, values in scores.items()}
        self.points = points_of(curves)
        result = {key: value for name, curve in curves.items() for key, value in summarise(curve, name).items()}
        if self.threshold is not None:
            called = single_score > self.threshold
            rates = {"escapes": ~called[label], "false_alarms": called[~label]}
            result |= {name: float(wrong.double().mean()) for name, wrong in rates.items() if len(wrong)}
        return result

    def _gathered(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms and single score (N,) float64 and label (N,) bool of the images of all processes."""
        columns = len(self.terms) + 1
        scores = gathered(joined(self.scores).double().flatten()).reshape(-1, columns)
        *terms, single_score = scores.unbind(dim=1)
        label = gathered(joined(self.label).int()).bool()
        return dict(zip(self.terms, terms, strict=True)), single_score, label
