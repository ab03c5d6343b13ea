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
