"""What every evaluation reports: its metrics by name, and its curves. To check a setting takes no torch."""

from typing_extensions import NotRequired, TypedDict

METRIC_NAMES = (
    "image_AUROC",
    "image_AP",
    "image_F1Max",
    "pixel_AUROC",
    "pixel_AP",
    "pixel_F1Max",
    "pixel_AUPRO",
)
"""The metrics that are averaged over the categories, in the order they are shown; in [0, 1], and higher is better."""

SINGLE_NAMES = ("single_AUROC", "single_AP", "single_F1Max", "single_F1Max_threshold")
"""Of the score of each image alone, per category; a benchmark's image metrics are those of the fused score."""

DECISION_NAMES = ("escapes", "false_alarms")
"""At a given threshold of the score of each image alone: the shares of the anomalous images that are missed, and of the
normal ones that are called anomalous; in [0, 1], and lower is better."""

RESULT_KEYS = (
    *METRIC_NAMES,
    "image_F1Max_threshold",
    *SINGLE_NAMES,
    *DECISION_NAMES,
    "pixel_F1Max_threshold",
    *(f"{name}_error" for name in METRIC_NAMES if name.startswith("pixel_")),
    "vanished_masks",
    "empty_masks",
)
"""What the result of a category may have. A metric of the user's own has another name."""


class CurvePoints(TypedDict):
    """Lists of one length, highest threshold first.

    At each ``threshold`` a sample is predicted anomalous when its score is >= it; ``fpr``, ``recall``, ``precision``
    and, for pixels, ``pro`` (the mean over the regions of the part that is found) are in [0, 1].
    """

    threshold: list[float]
    fpr: list[float]
    recall: list[float]
    precision: list[float]
    pro: NotRequired[list[float]]
