# N = images; H, W = height, width; P = N * H * W pixels
"""Pixel metrics the ways they are usually computed, to compare with: each takes maps (N, H, W) and masks {0, 1}."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

Maps = NDArray[np.float32]
Masks = NDArray[np.uint8]

MAX_FPR = 0.3
EIGHT_CONNECTED = np.ones((3, 3))


def scikit_learn_three(maps: Maps, masks: Masks) -> dict[str, float]:
    """AUROC, AP and F1-max by scikit-learn's three calls, each of which sorts all pixels."""
    scores, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "AUROC": float(roc_auc_score(truth, scores)),
        "AP": float(average_precision_score(truth, scores)),
        "F1Max": float(f1.max()),
    }


def threshold_aupro(maps: Maps, masks: Masks, num_thresholds: int = 200) -> float:
    """AUPRO over evenly spaced thresholds, the way most repositories have it: everything anew at each of them.

    At every threshold each mask is labelled and each of its regions visited. The false-positive rates up to the limit
    are stretched to [0, 1], and the area is a trapezoid sum. Depends on the scale of the scores.
    """
    rates, overlaps = [], []
    for threshold in np.linspace(maps.min(), maps.max(), num_thresholds, endpoint=False):
        predicted = maps > threshold
        covered = []
        for prediction, mask in zip(predicted, masks, strict=True):
            labels, _ = ndimage.label(mask, structure=EIGHT_CONNECTED)
            for number, box in enumerate(ndimage.find_objects(labels), start=1):
                covered.append(prediction[box][labels[box] == number].mean())
        overlaps.append(np.mean(covered))
        rates.append(predicted[masks == 0].mean())
    rate, overlap = np.array(rates)[::-1], np.array(overlaps)[::-1]
    kept = rate < MAX_FPR
    rate, overlap = rate[kept], overlap[kept]
    stretched = (rate - rate.min()) / (rate.max() - rate.min())
    return _trapezoid(overlap, stretched)


def argsort_aupro(maps: Maps, masks: Masks) -> float:
    """Exact AUPRO by sorting all pixels with what each adds to either axis, as the publisher of MVTec AD does."""
    false_positive = (masks == 0).ravel() / np.count_nonzero(masks == 0)  # (P,)
    labels, num_regions = ndimage.label(
        masks, structure=np.stack([np.zeros((3, 3)), EIGHT_CONNECTED, np.zeros((3, 3))])
    )
    areas = np.bincount(labels.ravel()).astype(np.float64)
    overlap = np.where(labels > 0, 1.0 / (areas[labels] * num_regions), 0.0).ravel()  # (P,)
    scores = maps.ravel()
    order = np.argsort(-scores)
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # ties move both axes at once
    rate = np.append(0.0, np.cumsum(false_positive[order])[ends])
    height = np.append(0.0, np.cumsum(overlap[order])[ends])
    last = int(np.searchsorted(rate, MAX_FPR, side="right"))
    limit = np.interp(MAX_FPR, rate[last - 1 : last + 1], height[last - 1 : last + 1])
    return _trapezoid(np.append(height[:last], limit), np.append(rate[:last], MAX_FPR)) / MAX_FPR


def _trapezoid(y: NDArray[np.float64], x: NDArray[np.float64]) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
