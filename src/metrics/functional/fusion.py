# N = test images of one category
"""Rules by which a benchmark makes one image score of a method's image-level terms."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from src.metrics.functional.arguments import as_scores, check_ndim, check_shape

Rule = Callable[[Sequence[Tensor], Tensor], Tensor]


def fuse(terms: Mapping[str, Tensor], single_score: Tensor, rule: str) -> Tensor:
    """Give each image of one category its image score.

    All rules but `single` are transductive: the score of an image depends on the other test images, so they belong to
    the evaluation of a benchmark, and never to the prediction for one image. A term that is the same for all images
    ranks nothing, and its min-max normalisation is 0.

    Args:
        terms: name -> (N,) floating point, finite, any range; the order counts for `half_sum_min_max`.
        single_score: (N,) floating point, finite, any range: the score of each image on its own.
        rule: one of `FUSIONS`.

    Returns:
        (N,) float64; a higher score is more anomalous.

    Raises:
        ValueError: if there is no such rule, it does not fit the number of terms, a score is not finite, or shapes or
            dtypes don't fit.

    Example:
        >>> import torch
        >>> terms = {"cls_score": torch.tensor([0.0, 0.5, 1.0]), "map_max": torch.tensor([1.0, 5.0, 3.0])}
        >>> fuse(terms, torch.tensor([1.0, 5.5, 4.0]), "min_max_sum")
        tensor([0.0000, 1.5000, 1.5000], dtype=torch.float64)
        >>> fuse(terms, torch.tensor([1.0, 5.5, 4.0]), "single")
        tensor([1.0000, 5.5000, 4.0000], dtype=torch.float64)
    """
    check_fusion(tuple(terms), rule)
    single_score = as_scores(single_score, "single_score")
    check_ndim(single_score, "single_score", 1)
    columns = []
    for name, term in terms.items():
        check_shape(term, name, single_score, "single_score")
        columns.append(as_scores(term, name).double())
    return FUSIONS[rule](columns, single_score.double())


def needs_all_images(rule: str) -> bool:
    """Say whether the image score of a rule depends on the other images of the category.

    Example:
        >>> needs_all_images("min_max_sum"), needs_all_images("single")
        (True, False)
    """
    return rule != "single"


def check_fusion(terms: Sequence[str], rule: str) -> None:
    """Raise a ``ValueError`` unless there is the rule, it fits the number of terms, and each term is named once.

    Example:
        >>> check_fusion(["cls_score", "map_max"], "min_max_sum")
    """
    if rule not in FUSIONS:
        raise ValueError(f"Expected argument `fusion` to be one of {', '.join(FUSIONS)}, but got {rule}.")
    if len(set(terms)) != len(terms):
        raise ValueError(f"Expected argument `terms` to name each once, but got {list(terms)}.")
    if (rule == "half_sum_min_max" and len(terms) != 2) or (rule == "min_max_sum" and not terms):
        number = "two terms" if rule == "half_sum_min_max" else "a term or more"
        raise ValueError(f"Expected argument `terms` to have {number} for fusion {rule}, but got {list(terms)}.")


def _min_max_sum(terms: Sequence[Tensor], single_score: Tensor) -> Tensor:
    """The sum of the normalised terms, in [0, number of terms]; CLIP-AD, https://arxiv.org/abs/2311.00453."""
    return torch.stack([_min_max(term) for term in terms]).sum(dim=0)


def _half_sum_min_max(terms: Sequence[Tensor], single_score: Tensor) -> Tensor:
    """Half of the sum of the first term and the normalised second; few-shot APRIL-GAN, https://arxiv.org/abs/2305.17382."""
    first, second = terms
    return 0.5 * (first + _min_max(second))


def _single(terms: Sequence[Tensor], single_score: Tensor) -> Tensor:
    return single_score


FUSIONS: Mapping[str, Rule] = {
    "min_max_sum": _min_max_sum,
    "half_sum_min_max": _half_sum_min_max,
    "single": _single,
}
"""Name -> function of the terms, (N,) float64 each, and the single score (N,) float64."""


def _min_max(scores: Tensor) -> Tensor:
    """Move scores (N,) to [0, 1]."""
    if scores.numel() == 0:
        return scores
    low, high = scores.aminmax()
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
