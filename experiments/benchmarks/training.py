"""Epochs a minute of SDP+ from cached features.

`python -m experiments.benchmarks.training [--accelerator gpu] [--images 1725]` runs the same command with one epoch and
with more, in turn; what lies between are epochs and nothing else. What follows the options are overrides of
`src.train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from experiments.benchmarks.large_data import enlarged_demo
from experiments.benchmarks.runs import ARCHITECTURE, accelerator, common_options, save_random_weights, time_command
from experiments.benchmarks.timing import print_table, write_results


def main() -> None:
    """Fill the cache, take the times, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights, images and cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", type=accelerator, default="cpu")
    parser.add_argument("--backbone", default=ARCHITECTURE)
    parser.add_argument("--images", type=int, default=1725)
    parser.add_argument("--epochs", type=int, default=10)
    options, overrides = parser.parse_known_args()
    root = enlarged_demo(options.work, options.images, side=700).resolve()
    weights = save_random_weights(options.work, options.backbone)
    fixed = [
        "+exp=sdp_plus_visa",
        "data@test_data=demo",
        *common_options(options.work, weights, options.threads, options.accelerator),
    ]
    fixed += [f"train_data.root={root}", f"train_data.num_workers={options.threads}"]
    fixed += ["feature_cache.enabled=true", "test=false", "model.representative=mean", *overrides]

    def seconds(epochs: int) -> float:
        with TemporaryDirectory() as folder:
            places = [f"paths.output_dir={folder}/run", f"paths.cache_dir={options.work.resolve()}/cache"]
            return time_command(options.threads, "src.train", *fixed, *places, f"trainer.max_epochs={epochs}").whole

    seconds(1)  # fills the cache
    taken = {epochs: [] for epochs in (1, 1 + options.epochs)}
    for _ in range(options.rounds):
        for epochs, own in taken.items():
            own.append(seconds(epochs))
    one, more = (median(own) for own in taken.values())
    row = {
        "images": options.images,
        "s an epoch": (more - one) / options.epochs,
        "epochs a minute": 60 * options.epochs / (more - one),
        "start (s)": one,
    }
    print_table(options.backbone, [row])
    write_results("training", {options.backbone: [row]}, **{key: str(value) for key, value in vars(options).items()})


if __name__ == "__main__":
    main()
