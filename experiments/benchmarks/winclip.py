"""WinCLIP's zero-shot pass beside anomalib's, on the same random weights of ViT-B-16-plus-240 and the same images.

anomalib is right with open_clip below 2.26.1 only, so it needs an environment of its own, and this file is run by its
path there:

    python3.11 -m venv other
    other/bin/pip install open_clip_torch==2.24.0 anomalib==2.7.0
    python -m experiments.benchmarks.winclip inputs FOLDER
    python -m experiments.benchmarks.winclip ours FOLDER --precision bf16
    python -m experiments.benchmarks.winclip ours FOLDER
    other/bin/python experiments/benchmarks/winclip.py anomalib FOLDER
    python -m experiments.benchmarks.winclip compare FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

ARCHITECTURE, CATEGORY, SIZE = "ViT-B-16-plus-240", "metal_nut", 240
WEIGHTS, IMAGES = "weights.pt", "images.npz"


def write_inputs(folder: Path, batch: int) -> None:
    """Random weights, scaled so that maps vary, and images of noise at several scales."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
            elif "bias" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(model.state_dict(), folder / WEIGHTS)
    noise = [F.interpolate(torch.randn(batch, 3, side, side), size=SIZE, mode="bicubic") for side in (6, 15, 60)]
    np.savez(folder / IMAGES, images=torch.stack(noise).sum(dim=0).numpy())


def ours(folder: Path, images: Tensor, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """This project's pass: map and score of a batch."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from src.clip.backbone import Backbone, find_backbone
    from src.models.winclip import WinCLIP

    clip = Backbone(find_backbone(ARCHITECTURE, str(folder / WEIGHTS)))
    method = WinCLIP(clip, instantiate(OmegaConf.load("conf/prompts/winclip.yaml")))
    method.text.prepare([CATEGORY], "mvtec")
    text = method.text([CATEGORY] * len(images))

    def run() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = method(images, text)
        return scores.anomaly_map, scores.single_score

    return run


def anomalibs(folder: Path, images: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """anomalib's own model, which is kept from downloading weights, and nothing else."""
    create = open_clip.create_model_and_transforms

    def with_weights(name: str, pretrained: Any = None, **options: Any) -> Any:
        del pretrained
        made = create(name, pretrained=None, **options)
        made[0].load_state_dict(torch.load(folder / WEIGHTS))
        return made

    open_clip.create_model_and_transforms = with_weights
    from anomalib.models.image.winclip.torch_model import WinClipModel  # type: ignore[import-not-found,unused-ignore]

    model = WinClipModel().eval()
    model.setup(CATEGORY)

    def run() -> tuple[Tensor, Tensor]:
        found = model(images)
        return found.anomaly_map, found.pred_score

    return run


def measure(run: Callable[[], tuple[Tensor, Tensor]], repeats: int, path: Path) -> None:
    """Run it once to warm up, and then time it."""
    seconds = []
    with torch.inference_mode():
        run()
        for _ in range(repeats):
            start = time.perf_counter()
            anomaly_map, score = run()
            seconds.append(time.perf_counter() - start)
    np.savez(path, map=anomaly_map.float().numpy(), score=score.float().numpy(), seconds=seconds)
    per_image = np.array(seconds) / len(score)
    print(f"{path.stem}: {per_image.min():.2f} s an image, median {np.median(per_image):.2f}, {repeats} times")


def compare(folder: Path) -> None:
    """Print how far maps and scores lie apart."""
    found = {path.stem: np.load(path) for path in folder.glob("result_*.npz")}
    other = found.pop("result_anomalib")
    ranges = np.ptp(other["map"].reshape(len(other["map"]), -1), axis=1)
    print(f"anomalib: maps have a range of {ranges.min():.4f} to {ranges.max():.4f}")
    for name, own in found.items():
        differences = (np.abs(own[key] - other[key]).max() for key in ("map", "score"))
        print(f"{name}: largest difference of maps {next(differences):.1e}, of scores {next(differences):.1e}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inputs", "ours", "anomalib", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.what == "inputs":
        write_inputs(given.folder, given.batch)
    elif given.what == "compare":
        compare(given.folder)
    else:
        images = torch.from_numpy(np.load(given.folder / IMAGES)["images"])
        own = given.what == "ours"
        run = ours(given.folder, images, given.precision) if own else anomalibs(given.folder, images)
        measure(run, given.repeats, given.folder / f"result_{given.precision if own else given.what}.npz")


if __name__ == "__main__":
    main()
