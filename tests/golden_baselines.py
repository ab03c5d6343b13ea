"""The golden arrays of the baselines as tests use them: a small CLIP on disk, and what public code computed with it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from src.clip.backbone import Backbone, BackboneSource, find_backbone
from src.models.prompts import Prompts
from tests.cli import NO_REPORT
from tests.golden_reference import CLIP_MEAN, CLIP_STD, ROOT


class Baseline:
    """One of the files; its keys stand in tests/golden/README.md.

    Args:
        name: `winclip`, `april_gan` or `anomalyclip`.
        folder: where architecture and weights are written.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.arrays = np.load(ROOT / "tests" / "golden" / f"{name}_a.npz")
        self.settings: dict[str, Any] = json.loads(str(self.arrays["config"]))
        self.classes: list[str] = self.settings.get("classes", ["object"])
        own = self.arrays.get("classes_of_images", ["object"] * 6)
        self.classes_of_images: list[str] = [str(one) for one in own]
        self.config_path = folder / f"architecture_{name}.json"
        self.config_path.write_text(json.dumps(self.settings["clip"]))
        self.weights_path = folder / f"weights_{name}.pt"
        torch.save(self._weights(), self.weights_path)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def _weights(self) -> dict[str, Tensor]:
        """Of `winclip` and `april_gan` the file has only what is not the same in reference_a."""
        weights = self.state("weights/")
        if self.name != "anomalyclip":
            with np.load(ROOT / "tests" / "golden" / "reference_a.npz") as shared:
                names = [key.removeprefix("weights/") for key in shared.files if key.startswith("weights/")]
                weights = {name: torch.from_numpy(shared[f"weights/{name}"]).float() for name in names} | weights
        return weights

    @cached_property
    def source(self) -> BackboneSource:
        return find_backbone(f"golden-{self.name}", str(self.weights_path), str(self.config_path))

    @cached_property
    def backbone(self) -> Backbone:
        return Backbone(self.source)

    @cached_property
    def images(self) -> Tensor:
        """(6, 3, H, W), normalised."""
        return normalised(self["images"])

    @cached_property
    def prompts(self) -> Prompts:
        """Those of conf/prompts."""
        name = self.name if self.name != "anomalyclip" else "clip_ad"
        prompts = instantiate(OmegaConf.load(ROOT / "conf" / "prompts" / f"{name}.yaml"))
        assert isinstance(prompts, Prompts)
        return prompts

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The arrays below a prefix, as float32 where they are floating point."""
        found = {key.removeprefix(prefix): self[key] for key in self.arrays.files if key.startswith(prefix)}
        return {key: one.float() if one.is_floating_point() else one for key, one in found.items()}

    def write_authors_checkpoint(self, path: Path) -> Path:
        """A file as the method's authors write it."""
        if self.name == "april_gan":
            own = {f"fc.{name.replace('/', '.')}": values for name, values in self.state("linear/").items()}
            content = {"trainable_linearlayer": own}
        else:
            content = {"prompt_learner": self.state("checkpoint/")}
        torch.save(content, path)
        return path

    def write_mvtec(self, root: Path) -> Path:
        """The images as an MVTec-like data set, and the reference images as its train split.

        Of each class the first image is normal; the masks of the others are the golden ones, or a square.
        """
        seen: set[str] = set()
        for index, name in enumerate(self.classes_of_images):
            defect = "broken" if name in seen else "good"
            seen.add(name)
            _save(root / name / "test" / defect / f"{index:03}.png", self.arrays["images"][index])
            if defect == "broken":
                mask = np.zeros(self.arrays["images"].shape[1:3], np.uint8)
                mask[20:50, 30:60] = 255
                _save(root / name / "ground_truth" / defect / f"{index:03}_mask.png", mask)
        for name in self.classes:
            for number, image in enumerate(self.reference_images(name)):
                _save(root / name / "train" / "good" / f"{number:03}.png", image)
        return root

    def reference_images(self, name: str) -> Any:
        """(K, S, S, 3) uint8 of a class; `anomalyclip` has none, so some of its own test images turned round."""
        if self.name == "anomalyclip":
            return self.arrays["images"][:2, ::-1, ::-1]
        key = f"reference_images/{name}" if self.name == "april_gan" else "reference_images"
        return self.arrays[key]


def normalised(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W), as CLIP wants it."""
    return ((images.float() / 255 - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)


def _save(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path)


class Bench:
    """A method on its golden CLIP and images, from the command line.

    Args:
        name: of the golden file.
        folder: where the CLIP, the images and the checkpoint are.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.golden = Baseline(name, folder)
        self.data = self.golden.write_mvtec(folder / "data")
        self.checkpoint = folder / "authors.pth"
        if name == "april_gan":
            self.golden.write_authors_checkpoint(self.checkpoint)
            content = torch.load(self.checkpoint)
            torch.save({"linear_layers": content["trainable_linearlayer"]}, folder / "sdp_plus.pth")
        elif name == "anomalyclip":
            self.golden.write_authors_checkpoint(self.checkpoint)

    @property
    def backbone(self) -> list[str]:
        return [
            f"backbone.name=golden-{self.golden.name}",
            f"backbone.config={self.golden.config_path}",
            f"backbone.pretrained={self.golden.weights_path}",
            "~callbacks.progress",
            "+trainer.enable_progress_bar=false",
            "test_data.num_workers=0",
            NO_REPORT,
        ]


METHODS: dict[str, tuple[str, list[str]]] = {
    "clip": ("winclip", ["model=clip"]),
    "clip_surgery": ("winclip", ["model=clip_surgery"]),
    "winclip": ("winclip", ["model=winclip"]),
    "winclip_plus": ("winclip", ["model=winclip_plus"]),
    "april_gan": ("april_gan", ["model=april_gan"]),
    "april_gan_few_shot": ("april_gan", ["model=april_gan"]),
    "anomalyclip": ("anomalyclip", ["model=anomalyclip", "model.feature_layers=[6,12,18,24]"]),
    "sdp_plus_few_shot": ("april_gan", ["model=sdp_plus", "model.representative=mean"]),
}
"""Method -> golden file, and the options that choose it."""
FEW_SHOT = ("winclip_plus", "april_gan_few_shot", "sdp_plus_few_shot")


def options_of(method: str, benches: dict[str, Bench]) -> tuple[Bench, list[str]]:
    golden, options = METHODS[method]
    bench = benches[golden]
    checkpoint = bench.data.parent / "sdp_plus.pth" if method.startswith("sdp_plus") else bench.checkpoint
    trained = [] if golden == "winclip" else [f"ckpt_path={checkpoint}"]
    return bench, [*bench.backbone, *options, *trained]


def shots_of(method: str) -> list[str]:
    return ["shots=2"] if method in FEW_SHOT else []
