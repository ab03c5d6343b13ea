"""Each way to choose a representative vector against a computation of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import MeanShift

from src.models.representative import REPRESENTATIVES, representative_vector

DBSCAN = {"eps": 0.5, "min_samples": 4}


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def sentences(count: int = 30, embed_dim: int = 8, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Unit rows scattered about a common direction."""
    rng = np.random.default_rng(seed)
    return unit(unit(rng.normal(size=embed_dim)) + spread * rng.normal(size=(count, embed_dim)) / np.sqrt(embed_dim))


def choose(rows: np.ndarray, method: str, eps: float = 0.5, min_samples: int = 4) -> np.ndarray:
    vector = representative_vector(torch.from_numpy(rows), method, {"eps": eps, "min_samples": min_samples})
    return vector.double().numpy()


def assert_same(vector: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(vector, unit(expected), rtol=0, atol=1e-6)


def brute_force_clusters(rows: np.ndarray, eps: float, min_samples: int) -> list[set[int]]:
    """DBSCAN's clusters by its definition, biggest first: connected core points and what they reach."""
    near = [{j for j in range(len(rows)) if np.sqrt(((rows[i] - rows[j]) ** 2).sum()) <= eps} for i in range(len(rows))]
    core = {i for i in range(len(rows)) if len(near[i]) >= min_samples}
    clusters, todo = [], set(core)
    while todo:
        reached, stack = set(), [todo.pop()]
        while stack:
            i = stack.pop()
            reached.add(i)
            if i in core:
                stack += near[i] - reached
        todo -= reached
        clusters.append(reached)
    return sorted(clusters, key=len, reverse=True)


def test_mean() -> None:
    rows = sentences()
    assert_same(choose(rows, "mean"), sum(rows) / len(rows))


@pytest.mark.parametrize("spread", [1.0, 9.0], ids=["alike", "of all directions"])
@pytest.mark.parametrize("seed", range(4, 8))  # of all directions, two of them need their sign turned
def test_pca_is_the_first_left_singular_vector_turned_to_the_mean(seed: int, spread: float) -> None:
    rows = sentences(seed=seed, spread=spread)
    columns = rows.T - rows.T.mean(axis=0)  # one sentence a column, each centred over its D entries
    left = np.linalg.svd(columns, full_matrices=False)[0][:, 0]
    expected = left * np.sign(left @ rows.mean(axis=0))
    assert_same(choose(rows, "pca"), expected)
    assert_same(choose(-rows, "pca"), -expected)  # the sign is the mean's, whatever the solver's


def test_kde_weighs_each_sentence_by_the_density_around_it() -> None:
    rows = np.concatenate([sentences(12, spread=0.3), sentences(5, spread=0.3, seed=9)])
    weights = np.zeros(len(rows))
    for i, row in enumerate(rows):
        for other in rows:
            weights[i] += np.exp(-((row - other) ** 2).sum() / (2 * 0.3**2))
    expected = sum(weight * row for weight, row in zip(weights, rows, strict=True))
    assert_same(choose(rows, "kde"), expected)
    assert np.abs(choose(rows, "kde") - choose(rows, "mean")).max() > 0.01


def test_dbscan_is_the_mean_of_the_largest_cluster() -> None:
    small, large, noise = sentences(6, spread=0.2), sentences(11, spread=0.2, seed=5), sentences(3, spread=9, seed=2)
    rows = np.concatenate([small, large, noise])
    clusters = brute_force_clusters(rows, **DBSCAN)
    assert [len(cluster) for cluster in clusters] == [11, 6]
    assert_same(choose(rows, "dbscan", **DBSCAN), rows[sorted(clusters[0])].mean(axis=0))


def test_dbscan_takes_in_border_points_and_leaves_noise_out() -> None:
    rows = sentences(40, spread=0.7, seed=1)
    (largest, *_) = brute_force_clusters(rows, eps=0.45, min_samples=6)
    assert 6 < len(largest) < 40
    assert_same(choose(rows, "dbscan", 0.45, 6), rows[sorted(largest)].mean(axis=0))


def test_dbscan_of_visa_is_the_mean() -> None:
    rows = sentences(30)
    assert (rows @ rows.T).min() >= -0.125
    assert_same(choose(rows, "dbscan", 1.5, 25), rows.mean(axis=0))


def test_dbscan_without_a_cluster_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no cluster among 30 sentences with eps=0.001 and min_samples=4;.*eps"):
        choose(sentences(), "dbscan", eps=0.001)


@pytest.mark.parametrize("spread", [0.5, 50])
def test_mean_shift_from_one_seed_is_the_one_from_all_and_the_mean(spread: float) -> None:
    rows = sentences(14, 4, spread)
    labels = MeanShift(bandwidth=2).fit_predict(rows)
    largest = rows[labels == np.bincount(labels).argmax()]
    assert_same(choose(rows, "mean_shift"), largest.mean(axis=0))
    assert_same(choose(rows, "mean_shift"), rows.mean(axis=0))


@pytest.mark.parametrize("method", REPRESENTATIVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vector_has_unit_length_and_stays_on_its_device_in_float32(method: str, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(sentences()).to(dtype)
    vector = representative_vector(rows, method, DBSCAN)
    assert vector.shape == (8,)
    assert vector.dtype == torch.float32
    assert vector.device == rows.device
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(1, abs=1e-6)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"mean, pca, kde, dbscan, mean_shift, but got 'median'"):
        choose(sentences(), "median")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_vector_stays_on_the_gpu() -> None:
    rows = torch.from_numpy(sentences())
    on_gpu = representative_vector(rows.cuda(), "mean", DBSCAN)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), representative_vector(rows, "mean", DBSCAN))
