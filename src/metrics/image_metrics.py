# B = images of a batch; N = images of the category; T = terms
"""Image-level metrics of one category."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from src.metrics.base import joined, summarise
from src.metrics.exchange import gathered
from src.metrics.functional import check_fusion, exact_curve, fuse
from src.metrics.functional.arguments import as_scores, as_truth, check_ndim, check_shape


class ImageMetrics(Metric):
    """AUROC, AP and F1-max of the fused image score of one category.

    Most fusions need all images of the category, so the terms are kept (on the CPU, a few numbers an image) and fused
    in `compute`, where several processes gather them; see `CurveMetric`.

    Args:
        terms: the names of the image-level terms, in the method's order.
        fusion: how they are fused, one of `src.metrics.functional.FUSIONS`.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if there is no such fusion, or it does not fit the terms.

    Example:
        >>> import torch
        >>> metrics = ImageMetrics(["cls_score", "map_max"], "min_max_sum")
        >>> terms = {"cls_score": torch.tensor([0.1, 0.2, 0.7]), "map_max": torch.tensor([3.0, 1.0, 5.0])}
        >>> metrics.update(terms, single_score=torch.tensor([3.1, 1.2, 5.7]), label=torch.tensor([0, 0, 1]))
        >>> metrics.compute()
        {'image_AUROC': 1.0, 'image_AP': 1.0, 'image_F1Max': 1.0, 'image_F1Max_threshold': 2.0}
    """

    full_state_update = False

    scores: list[Tensor]  # (B, T + 1) each: the terms, then the single score
    label: list[Tensor]

    def __init__(self, terms: Sequence[str], fusion: str, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        check_fusion(terms, fusion)
        self.terms, self.fusion = tuple(terms), fusion
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
        columns = len(self.terms) + 1
        scores = gathered(joined(self.scores).double().flatten()).reshape(-1, columns)
        *terms, single_score = scores.unbind(dim=1)
        label = gathered(joined(self.label).int()).bool()
        return fuse(dict(zip(self.terms, terms, strict=True)), single_score, self.fusion), label

    def compute(self) -> dict[str, float]:
        """Return image_AUROC, image_AP, image_F1Max in [0, 1] and image_F1Max_threshold, in the fused score's range.

        Empty if a class is missing.
        """
        fused, label = self.fused()
        return summarise(exact_curve(fused[label], fused[~label]), "image")
