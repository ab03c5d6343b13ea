"""What is fixed before anything is tuned: categories, defects, seeds, counts, and who trains and who is tested.

Results are reported on REPORT_SEED. Everything that is selected (architecture, training, settings) is selected on
SELECTION_SEED. The demo backbone is trained on TRAINING_SEED. The three share no image.
"""

VERSION = 1
"""Counts up whenever the generator draws other images: a data set of another version is generated elsewhere."""

REPORT_SEED = 2024
SELECTION_SEED = 31
TRAINING_SEED = 7

SIZE = 128
"""Side of the images in pixels."""

TRAIN_GOOD, TEST_GOOD, TEST_PER_DEFECT = 8, 20, 7
"""Images per category: flawless ones to train and to test on, and damaged ones of each kind."""

DEFECTS: dict[str, tuple[str, ...]] = {
    "fabric": ("hole", "stain", "contamination", "deformed"),
    "wood": ("scratch", "crack", "hole", "stain"),
    "tile": ("scratch", "crack", "stain", "contamination"),
    "grid": ("missing_part", "deformed", "contamination", "stain"),
    "leather": ("scratch", "hole", "stain", "deformed"),
    "marble": ("scratch", "crack", "stain", "hole"),
    "button": ("scratch", "crack", "missing_part", "stain"),
    "gear": ("scratch", "missing_part", "deformed", "contamination"),
    "capsule": ("crack", "hole", "deformed", "contamination"),
    "coin": ("scratch", "stain", "missing_part", "deformed"),
    "cookie": ("crack", "hole", "missing_part", "contamination"),
    "nut": ("scratch", "crack", "missing_part", "stain"),
}
"""The kinds of damage of each category."""

PROJECTION_TRAIN = ("fabric", "wood", "tile", "button", "gear", "capsule")
"""Categories on which SDP+ trains its projections."""

PROJECTION_TEST = ("grid", "leather", "marble", "coin", "cookie", "nut")
"""Categories on which SDP+ is tested; its projections have never seen them."""
