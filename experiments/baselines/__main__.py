"""Run every method on the demo and on excerpts of MVTec AD and VisA, and write tables to results.md beside this file.

`python -m experiments.baselines DATA [overrides]`, from the repository root; DATA holds `mvtec/` and `visa/`. The
overrides are added to every command. Runs go to outputs/baselines/<time>.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from src.files import write_text
from src.metric_names import METRIC_NAMES

OUTPUT = Path("outputs/baselines")
RESULTS = Path(__file__).with_name("results.md")
SMOOTH = "model.smoothing_sigma=4"  # for 96 pixels, as the demo's experiments have it
FEW_SHOT = "shots=4"
TRAINING = [
    "data@train_data=demo",
    "train_data.categories=[fabric,wood,tile,button,gear,capsule]",
    "train_data.shuffle=true",
    "optimizer.lr=1e-3",
    "trainer.max_epochs=20",
]


class Method(NamedTuple):
    """How a method is run: `trained_as` is the one whose parameters it loads, if it has some.

    Example:
        >>> Method("clip", ["model=clip"]).trained_as is None
        True
    """

    name: str
    options: Sequence[str]
    trained_as: str | None = None


TRAINED = {
    "sdp_plus": ["+exp=sdp_plus_demo"],
    "april_gan": ["model=april_gan", "backbone=demo", *TRAINING],
    "anomalyclip": ["model=anomalyclip", SMOOTH, "backbone=demo", *TRAINING],
}
METHODS = [
    Method("clip", ["model=clip", SMOOTH]),
    Method("clip_surgery", ["model=clip_surgery", SMOOTH]),
    Method("winclip", ["model=winclip"]),
    Method("sdp", ["+exp=sdp_demo"]),
    Method("april_gan", ["model=april_gan"], "april_gan"),
    Method("anomalyclip", ["model=anomalyclip", SMOOTH], "anomalyclip"),
    Method("sdp_plus", ["+exp=sdp_plus_demo"], "sdp_plus"),
    Method("winclip_plus, 4 shots", ["model=winclip_plus", FEW_SHOT]),
    Method("april_gan, 4 shots", ["model=april_gan", FEW_SHOT], "april_gan"),
    Method("sdp_plus, 4 shots", ["+exp=sdp_plus_demo", FEW_SHOT], "sdp_plus"),
]
DATA = {
    "demo, six unseen categories": ["data@test_data=demo_unseen"],
    "MVTec AD, excerpt of bottle and screw": ["data@test_data=mvtec"],
    "VisA, excerpt of capsules and macaroni1": ["data@test_data=visa"],
}


def main(data: Path, overrides: Sequence[str], output: Path, results: Path) -> None:
    """Train what is trained, on the six categories of the demo; then test all methods on all data."""
    common = ["test_data.num_workers=0", *overrides]
    for name, options in TRAINED.items():
        run("src.train", [*options, "data@test_data=demo_unseen", "test=false", *common], output / f"train_{name}")
    lines = ["# Results", "", "Written by `python -m experiments.baselines`; in percent.", ""]
    for number, (title, chosen) in enumerate(DATA.items()):
        lines += [f"## {title}", "", row("method", METRIC_NAMES), row("---", ["---:"] * len(METRIC_NAMES))]
        for position, method in enumerate(METHODS):
            folder = output / f"{number}_{position}_{method.name.partition(',')[0]}"
            where = [] if number == 0 else [f"test_data.root={data / chosen[0].partition('=')[2]}"]
            backbone = [] if any(own.startswith("+exp=") for own in method.options) else ["backbone=demo"]
            trained = [f"ckpt_path={weights_of(output, method.trained_as)}"] if method.trained_as else []
            run("src.eval", [*method.options, *backbone, *chosen, *where, *trained, *common], folder)
            means = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["mean"]
            lines.append(row(method.name, [f"{100 * means[name]:.1f}" for name in METRIC_NAMES]))
        lines.append("")
    write_text(results, "\n".join(lines))
    print(f"tables in {results}")


def weights_of(output: Path, method: str) -> Path:
    """What a training has left, such as `train_april_gan/april_gan.trained_on_demo.safetensors`.

    Example:
        >>> weights_of(Path("out"), "april_gan").as_posix()
        'out/train_april_gan/april_gan.trained_on_demo.safetensors'
    """
    return output / f"train_{method}" / f"{method}.trained_on_demo.safetensors"


def row(name: str, cells: Sequence[str]) -> str:
    """A row of a Markdown table.

    Example:
        >>> row("clip", ["95.1", "92.7"])
        '| clip | 95.1 | 92.7 |'
    """
    return f"| {' | '.join([name, *cells])} |"


def run(module: str, options: Sequence[str], folder: Path) -> None:
    """Run a command, and print it."""
    full = ["-m", module, *options, f"paths.output_dir={folder}"]
    print(f"\n$ python {shlex.join(full)}", flush=True)
    subprocess.run([sys.executable, *full], check=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1], "mvtec").is_dir():
        sys.exit("error: expected a folder with mvtec/ and visa/: python -m experiments.baselines DATA")
    try:
        main(Path(sys.argv[1]), sys.argv[2:], OUTPUT / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), RESULTS)
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # the command has said why
