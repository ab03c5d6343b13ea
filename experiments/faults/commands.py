"""The command lines that are disturbed, all over the tiny data."""

from __future__ import annotations

from experiments.faults.harness import Place

EVAL = ("model=sdp", "test_data.batch_size=2")
TRAIN = (
    "model=sdp_plus",
    "data@train_data=mvtec",
    "train_data.categories=[pcb1]",
    "train_data.num_workers=0",
    "train_data.batch_size=2",
    "test_data.categories=[candle]",
    "test_data.batch_size=2",
    "trainer.max_epochs=3",
    "optimizer.lr=1e-2",
)
SWEEP = ("-m", *EVAL, "model.smoothing_sigma=2,4,8")
CACHED = "feature_cache.enabled=true"
UNCACHED = "feature_cache.enabled=false"


def predict(place: Place, category: str = "candle") -> list[str]:
    """Score three images whose labels nobody told."""
    return [f"test_data.root={place.mvtec / 'candle' / 'test'}", f"test_data.category={category}"]
