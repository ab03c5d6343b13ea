"""The metrics that every evaluation reports. Nothing is imported here: to check a setting takes no torch."""

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

RESULT_KEYS = (
    *METRIC_NAMES,
    "image_F1Max_threshold",
    *SINGLE_NAMES,
    "pixel_F1Max_threshold",
    *(f"{name}_error" for name in METRIC_NAMES if name.startswith("pixel_")),
    "vanished_masks",
    "empty_masks",
)
"""What the result of a category may have. A metric of the user's own has another name."""
