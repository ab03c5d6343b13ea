"""Representative vector selection: one unit vector for the K sentences of a side (CLIP-AD, section 3.1).

K sentences, D embedding. Every method takes unit-length rows (K, D) and returns a vector (D,), not yet normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN, MeanShift
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor
from torch.nn import functional as F

KDE_BANDWIDTH = 0.3
MEAN_SHIFT_BANDWIDTH = 2.0
REPRESENTATIVES = ("mean", "pca", "kde", "dbscan", "mean_shift")

Array = NDArray[np.float64]


def representative_vector(embeddings: Tensor, method: str, dbscan: Mapping[str, Any]) -> Tensor:
    """Reduce a side's sentences to one vector.

    Args:
        embeddings: (K, D), unit-length rows.
        method: one of `REPRESENTATIVES`.
        dbscan: `eps` and `min_samples`; they belong to the data set whose classes are embedded.

    Returns:
        (D,), unit length, on the device of `embeddings`, float32.

    Raises:
        ValueError: unknown method, or DBSCAN finds no cluster.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> representative_vector(embeddings, "dbscan", {"eps": 0.5, "min_samples": 2})
        tensor([1., 0.])
        >>> representative_vector(embeddings, "mean", {})
        tensor([0.8944, 0.4472])
    """
    methods: dict[str, Callable[[Array], Array]] = {
        "mean": lambda rows: rows.mean(axis=0),
        "pca": first_component_scores,
        "kde": density_weighted_mean,
        "dbscan": lambda rows: largest_cluster_mean(rows, **dbscan),
        "mean_shift": mean_shift_mean,
    }
    check_representative(method)
    vector = methods[method](embeddings.cpu().double().numpy())
    return F.normalize(torch.as_tensor(vector, dtype=torch.float64), dim=0).float().to(embeddings.device)


def check_representative(method: str) -> None:
    """Raise a ValueError that lists the valid names when `method` is none of them.

    Example:
        >>> check_representative("mean_shift")
    """
    if method not in REPRESENTATIVES:
        raise ValueError(f"representative must be one of {', '.join(REPRESENTATIVES)}, but got '{method}'")


def check_dbscan(dbscan: Mapping[str, Mapping[str, Any]]) -> None:
    """Check DBSCAN's parameters of each data set: a radius and a number of neighbours.

    Raises:
        ValueError: they are others, or out of range; or there are none for `default`.

    Example:
        >>> check_dbscan({"default": {"eps": 0.5, "min_samples": 15}, "visa": {"eps": 1.5, "min_samples": 25}})
    """
    if "default" not in dbscan:
        raise ValueError(f"dbscan must have parameters for default, but has them for {', '.join(dbscan)}")
    for name, own in dbscan.items():
        eps, min_samples = own.get("eps"), own.get("min_samples")
        is_right = isinstance(eps, (int, float)) and eps > 0 and isinstance(min_samples, int) and min_samples >= 1
        if not is_right or set(own) != {"eps", "min_samples"}:
            raise ValueError(f"dbscan.{name} must have eps above 0 and min_samples of 1 or more, but got {dict(own)}")


def first_component_scores(rows: Array) -> Array:
    """Scores of the D entries on the first principal component of the D x K matrix, its sign turned to the mean's.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> first_component_scores(rows).round(3)  # a centred row, times the square root of 2
        array([ 0.943, -0.471, -0.471])
    """
    scores: Array = PCA(n_components=1, svd_solver="covariance_eigh").fit_transform(rows.T)[:, 0]  # (D,)
    return scores if scores @ rows.mean(axis=0) >= 0 else -scores


def density_weighted_mean(rows: Array) -> Array:
    """Mean weighted by each row's gaussian kernel density among all rows.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> density_weighted_mean(rows).round(3)  # the first two weigh about 2 each, the last about 1
        array([0.8, 0.2])
    """
    weights = rbf_kernel(rows, gamma=1 / (2 * KDE_BANDWIDTH**2)).sum(axis=0)  # (K,), densities but for a common factor
    mean: Array = weights @ rows / weights.sum()
    return mean


def largest_cluster_mean(rows: Array, eps: float, min_samples: int) -> Array:
    """Mean of DBSCAN's largest cluster.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> largest_cluster_mean(rows, eps=0.5, min_samples=2)
        array([1., 0.])
    """
    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(rows)
    if (labels < 0).all():
        raise ValueError(
            f"dbscan found no cluster among {len(rows)} sentences with eps={eps} and min_samples={min_samples}; "
            "raise eps or lower min_samples of the data set, or choose representative=mean"
        )
    return _mean_of_largest(rows, labels)


def mean_shift_mean(rows: Array) -> Array:
    """Mean of mean-shift's largest cluster, which on unit vectors is the plain mean.

    Two unit vectors are at most 2 apart, the bandwidth: every seed sees every row, so one seed finds what all would.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> mean_shift_mean(rows).round(3)
        array([0.667, 0.333])
    """
    return _mean_of_largest(rows, MeanShift(bandwidth=MEAN_SHIFT_BANDWIDTH, seeds=rows[:1]).fit_predict(rows))


def _mean_of_largest(rows: Array, labels: NDArray[np.int64]) -> Array:
    """Mean over the cluster with most members; label -1 is noise and no cluster."""
    largest = np.bincount(labels[labels >= 0]).argmax()
    mean: Array = rows[labels == largest].mean(axis=0)
    return mean
