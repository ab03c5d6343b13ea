"""The staged dual path: open_clip's image tower with a second, v-v attention path beside it (CLIP-AD, section 3.2).

B images, P patches, W width, D embedding. Block numbers count from 1, as in `feature_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from src.clip.architecture import STAGES, check_feature_layers
from src.clip.backbone import Backbone
from src.models.dual_block import BlockPlan, run_block

FeatureTap = Literal["reference", "block_output"]
FEATURE_TAPS = ("reference", "block_output")


class Level(NamedTuple):
    """The tokens read at one level; CLS is token 0 of both.

    Attributes:
        original: (B, 1+P, W), the tower's own path, without final norm and projection; (B, 1, W), CLS alone, where no
            patch token is needed.
        surgery: (B, 1+P, D), the second path's patch tokens behind the original path's CLS, normed and projected.
    """

    original: Tensor
    surgery: Tensor


class Tap(NamedTuple):
    """Where a level's tokens are read.

    Attributes:
        original_block: the block whose state of the original path is read.
        original_point: `attended` (after its attention, before its MLP) or `output`.
        surgery_block: the block after which the second path is read.
    """

    original_block: int
    original_point: str
    surgery_block: int


def _tap(layer: int, depth: int, feature_tap: FeatureTap) -> Tap:
    """The reading points of level `layer` of `depth` blocks; see `DualPath` for the two meanings."""
    if feature_tap == "block_output":
        return Tap(layer, "output", layer)
    stage_length = depth // STAGES
    stage_end = -(-layer // stage_length) * stage_length
    return Tap(layer, "output", stage_end) if layer == depth else Tap(layer + 1, "attended", stage_end)


class DualPath(nn.Module):
    """Runs both paths and reads them at the chosen levels.

    The second path gathers, block by block, attention of the values with themselves; it starts afresh at the first
    block of each of the four stages, has no MLP, and feeds on the original path only.

    `feature_tap` says what "after block n" means. `block_output` is the paper's equations: the sums up to and with
    block n. `reference` is the authors' code, whose published weights and numbers carry its side effect: tokens kept
    at a level are changed in place by the blocks that follow, so the original tokens hold the attention residual of
    block n+1 as well, and the second path holds its whole stage. The last block has nothing after it.

    Nothing is computed that no level reads: the second path only up to a level of its stage, and of the last block only
    what is read of it, which without original patch tokens is the CLS token's path.

    Args:
        backbone: the frozen CLIP.
        feature_layers: block numbers in rising order, 1 to depth.
        feature_tap: `reference` or `block_output`.
        needs_original: whether the levels' original patch tokens are read; otherwise only their CLS token is there.

    Raises:
        UserError: a block number out of range, an unknown tap.
    """

    def __init__(
        self,
        backbone: Backbone,
        feature_layers: Sequence[int],
        feature_tap: FeatureTap,
        needs_original: bool = True,
    ) -> None:
        super().__init__()
        check_feature_layers(feature_layers, backbone.architecture)
        if feature_tap not in FEATURE_TAPS:
            raise UserError(f"model.feature_tap must be one of {', '.join(FEATURE_TAPS)}, but got '{feature_tap}'")
        self.backbone = backbone
        self.needs_original = needs_original
        self.taps = [_tap(layer, backbone.architecture.depth, feature_tap) for layer in feature_layers]
        self._plans = _plan(self.taps, backbone.architecture.depth // STAGES, needs_original)
        self._read = {(tap.original_point, tap.original_block) for tap in self.taps}
        self._read |= {("second", tap.surgery_block) for tap in self.taps}
        self._run = torch.compile(run_block) if backbone.compiled else run_block
        self._rounded: dict[tuple[torch.device, torch.dtype], list[Any]] = {}

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Level]:
        """Tokens of every level.

        Args:
            images: (B, 3, H, W), normalised, at the architecture's size.

        Returns:
            One `Level` a feature layer, in their order, in float32.
        """
        kept: dict[tuple[str, int], Tensor] = {}
        tokens, second = self.backbone.embed(images), None  # (B, 1+P, W)
        blocks = self._blocks(images.device)
        for number, plan in enumerate(self._plans, start=1):
            state = self._run(blocks[number - 1], plan, tokens, None if plan.starts_stage else second)
            kept |= {
                (point, number): value for point, value in state._asdict().items() if (point, number) in self._read
            }
            tokens, second = state.output, state.second
        return [
            self._level(kept[tap.original_point, tap.original_block], kept["second", tap.surgery_block])
            for tap in self.taps
        ]

    def _blocks(self, device: torch.device) -> list[Any]:
        """The tower's blocks; under autocast copies in its precision, which it would otherwise make in each forward."""
        if not torch.is_autocast_enabled(device.type):
            return self.backbone.blocks
        precision = torch.get_autocast_dtype(device.type)
        if (device, precision) not in self._rounded:
            self._rounded[device, precision] = [deepcopy(block).to(precision) for block in self.backbone.blocks]
        return self._rounded[device, precision]

    def _level(self, original: Tensor, second: Tensor) -> Level:
        """Give the second path the original path's CLS and bring it into the joint embedding."""
        surgery = torch.cat([original[:, :1], second[:, 1:]], dim=1)  # (B, 1+P, W)
        original = original if self.needs_original else original[:, :1]
        return Level(original.float(), self.backbone.project(surgery).float())


def _plan(taps: Sequence[Tap], stage_length: int, needs_original: bool) -> list[BlockPlan]:
    """What to compute in each block, up to the last that is read."""
    last = max(max(tap.original_block, tap.surgery_block) for tap in taps)
    plans = []
    for number in range(1, last + 1):
        stage = (number - 1) // stage_length
        stage_is_read_later = any(
            (tap.surgery_block - 1) // stage_length == stage and tap.surgery_block >= number for tap in taps
        )
        reads_output = any(tap.original_point == "output" and tap.original_block == number for tap in taps)
        plans.append(
            BlockPlan(
                starts_stage=(number - 1) % stage_length == 0,
                second=stage_is_read_later,
                only_cls=number == last and not needs_original,
                mlp=number < last or reads_output,
            )
        )
    return plans
