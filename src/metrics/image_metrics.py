# B = images of a batch
"""Image-level metrics of one category."""

from typing import Any

from torch import Tensor
from torchmetrics import Metric

from src.metrics.base import joined, summarise
from src.metrics.exchange import gathered
from src.metrics.functional import exact_curve, fuse_image_scores
from src.metrics.functional.arguments import as_scores, as_truth, check_ndim, check_shape


class ImageMetrics(Metric):
    """AUROC, AP and F1-max of the fused image score of one category.

    Fusion needs all images of the category, so the two terms are kept (on the CPU, a few numbers per image) and fused
    in `compute`, where several processes gather them; see `CurveMetric`.
    """

    full_state_update = False

    cls_score: list[Tensor]
    map_max: list[Tensor]
    label: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        for state in ("cls_score", "map_max", "label"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, cls_score: Tensor, map_max: Tensor, label: Tensor) -> None:
        """Add images.

        Args:
            cls_score: (B,) floating point, finite, any range.
            map_max: (B,) floating point, finite, any range: the maximum of each smoothed map.
            label: (B,) {0, 1}; 1 is anomalous.

        Raises:
            ValueError: if a score is not finite, or shapes, dtypes or values don't fit.
        """
        check_ndim(cls_score, "cls_score", 1)
        check_shape(map_max, "map_max", cls_score, "cls_score")
        check_shape(label, "label", cls_score, "cls_score")
        cls_score, map_max = as_scores(cls_score, "cls_score"), as_scores(map_max, "map_max")
        label = as_truth(label, "label")
        # Cloned, or a caller who fills the same tensors again would change the states.
        self.cls_score.append(cls_score.clone())
        self.map_max.append(map_max.clone())
        self.label.append(label.clone())

    def compute(self) -> dict[str, float]:
        """Return image_AUROC, image_AP, image_F1Max in [0, 1] and image_F1Max_threshold, in fused score's [0, 2].

        Empty if a class is missing.
        """
        cls_score, map_max = (gathered(joined(state).double()) for state in (self.cls_score, self.map_max))
        fused = fuse_image_scores(cls_score, map_max)  # (N,)
        label = gathered(joined(self.label).int()).bool()
        return summarise(exact_curve(fused[label], fused[~label]), "image")
