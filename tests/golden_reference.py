"""The golden arrays as tests use them: a small CLIP on disk, and what the reference computed with it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from src.clip.backbone import Backbone, BackboneSource, find_backbone
from src.models.prompts import Prompts

ROOT = Path(__file__).parents[1]
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class Golden:
    """One of the two files.

    Keys: `surgery/<layer>`, `ori/<layer>` tokens; `text/<method>_<data set>/<class>` (D, 2); `similarity`, `map_raw`,
    `map_sdp_sigma<s>`, `prob` of SDP; `linear/<i>/{weight,bias}`, `map_linear`, `map_sdp_plus_sigma<s>` of SDP+;
    `loss/mask`, `loss/value`; `images` (6, H, W, 3) uint8; `classes_of_images`.
    """

    def __init__(self, letter: str, folder: Path) -> None:
        self.arrays = np.load(ROOT / "tests" / "golden" / f"reference_{letter}.npz")
        settings = json.loads(str(self.arrays["config"]))
        self.feature_layers: list[int] = settings["feature_layers"]
        self.classes: list[str] = settings["classes"]
        self.classes_of_images: list[str] = [str(c) for c in self.arrays["classes_of_images"]]
        self.config_path = folder / f"architecture_{letter}.json"
        self.config_path.write_text(json.dumps(settings["clip"]))
        self.weights_path = folder / f"weights_{letter}.pt"
        torch.save(self._prefixed("weights/"), self.weights_path)
        self.name = f"golden-{letter}"

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def _prefixed(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): self[k].float() for k in self.arrays.files if k.startswith(prefix)}

    @cached_property
    def source(self) -> BackboneSource:
        return find_backbone(self.name, str(self.weights_path), str(self.config_path))

    @cached_property
    def backbone(self) -> Backbone:
        return Backbone(self.source)

    @cached_property
    def images(self) -> Tensor:
        """(6, 3, H, W), normalised."""
        return ((self["images"].float() / 255 - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)

    @cached_property
    def text(self) -> Tensor:
        """(6, D, 2), the reference's own matrices."""
        return torch.stack([self[f"text/mean_mvtec/{name}"] for name in self.classes_of_images])

    @property
    def linear_state(self) -> dict[str, Tensor]:
        """The projections, named as in the reference's checkpoint files."""
        return {f"fc.{i}.{kind}": self[f"linear/{i}/{kind}"] for i in range(4) for kind in ("weight", "bias")}

    def write_reference_checkpoint(self, path: Path) -> Path:
        torch.save({"linear_layers": self.linear_state}, path)
        return path

    def write_mvtec(self, root: Path) -> Path:
        """The images as an MVTec-like data set: in each class the first image is normal, the others are not."""
        masks = self["loss/mask"].numpy()
        seen: set[str] = set()
        for index, name in enumerate(self.classes_of_images):
            defect = "broken" if name in seen else "good"
            seen.add(name)
            image = root / name / "test" / defect / f"{index:03}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self["images"][index].numpy()).save(image)
            if defect == "broken":
                mask = root / name / "ground_truth" / defect / f"{index:03}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((masks[index] > 0).astype(np.uint8) * 255).save(mask)
        return root


def paper_prompts() -> Prompts:
    """The prompts of conf/prompts/clip_ad.yaml."""
    prompts = instantiate(OmegaConf.load(ROOT / "conf" / "prompts" / "clip_ad.yaml"))
    assert isinstance(prompts, Prompts)
    return prompts
