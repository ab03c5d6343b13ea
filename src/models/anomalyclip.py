"""AnomalyCLIP: learned prompts that name no object, and v-v attention in the last blocks of the image tower.

B images, L levels, P = g * g patches, D embedding, T tokens of a sentence, V width of the text tower, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.clip.architecture import chosen_layers
from src.clip.backbone import Backbone
from src.clip.text_tower import encode_embeddings, has_causal_text_tower
from src.models.losses import dice_loss, focal_loss
from src.models.maps import check_sigma, gaussian_blur, upsampled
from src.models.method import Features, Frozen, Method, Scores, Targets, TextFeatures
from src.models.prompts import Prompts
from src.models.similarity import FIXED_SCALE, anomalous_probability
from src.models.value_path import ValuePath

PIXEL_WEIGHT = 4.0  # of the losses of the maps beside that of the image
SENTENCES = ("object.", "damaged object.")  # normal, anomalous
_STD = 0.02  # of new prompts
_LARGEST_DIFFERENCE = 1e-3  # of token embeddings in a checkpoint and here, which half precision may have rounded


class AnomalyCLIP(Method):
    """AnomalyCLIP (Zhou et al., https://arxiv.org/abs/2310.18961).

    Args:
        backbone: the frozen CLIP.
        prompts: not used; the method learns its own.
        feature_layers: the blocks after which the second path is read, counted from 1; None for the last one.
        n_ctx: learned tokens in front of `object.` and `damaged object.`
        depth: the first `depth` blocks of the text tower read learned tokens: the first one `n_ctx`, each other one
            `t_n_ctx`.
        t_n_ctx: see `depth`.
        dpam_layer: one more than the number of last blocks with v-v attention; None for 20 of 24, or as many of another
            depth.
        smoothing_sigma: standard deviation of the gaussian over the map, in pixels of the model's image size.
        fusion: how a benchmark fuses the image's probability and the map's maximum: `single` is the former alone.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = AnomalyCLIP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> features = method.features(torch.zeros(1, 3, 96, 96))
        >>> method.score(features, method.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """

    name = "anomalyclip"
    terms = ("cls_score", "map_max")
    authors_key = "prompt_learner"
    text: LearnedPrompts

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        feature_layers: Sequence[int] | None = None,
        n_ctx: int = 12,
        depth: int = 9,
        t_n_ctx: int = 4,
        dpam_layer: int | None = None,
        smoothing_sigma: float = 4,
        fusion: str = "single",
    ) -> None:
        super().__init__()
        del prompts
        check_sigma(smoothing_sigma)
        blocks = backbone.architecture.depth
        self.feature_layers = chosen_layers(feature_layers, [blocks], backbone.architecture)
        if dpam_layer is None:
            dpam_layer = round(blocks * 19 / 24) + 1
        if not 2 <= dpam_layer <= blocks + 1:
            raise ValueError(
                f"dpam_layer must be from 2 to {blocks + 1}, one more than the blocks with v-v attention, "
                f"but got {dpam_layer}"
            )
        self.backbone = backbone
        self.value_path = ValuePath(backbone, dpam_layer - 1, self.feature_layers)
        self.text = LearnedPrompts(backbone, n_ctx, depth, t_n_ctx)
        self.smoothing_sigma = smoothing_sigma
        self.fusion = fusion
        names = ["image", "tokens"]
        settings = {"feature_layers": self.feature_layers, "dpam_layer": dpam_layer}
        self.frozen = Frozen(settings, for_scores=names, for_loss=names)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """The `image` (B, D) of images (B, 3, H, W), and the `tokens` of their levels (B, L, 1+P, D), CLS first.

        As in the authors' code, the image's embedding skips the tower's final norm.
        """
        levels, original = self.value_path(images)
        tokens = torch.stack([self.backbone.project(level) for level in levels], dim=1)
        return {"image": (original[:, 0] @ self.backbone.clip.visual.proj).float(), "tokens": tokens.float()}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their features, given their text features (B, D, 2)."""
        with torch.autocast(text.device.type, enabled=False):
            anomaly_map = gaussian_blur(self.level_maps(features["tokens"], text).sum(dim=1), self.smoothing_sigma)
            probability = anomalous_probability(features["image"][:, None], text, FIXED_SCALE)[:, 0]  # (B,)
        return Scores(anomaly_map, {"cls_score": probability, "map_max": anomaly_map.amax(dim=(1, 2))}, probability)

    def level_maps(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Each level's anomalous probability at the image's size: (B, L, 1+P, D), (B, D, 2) -> (B, L, H, W).

        The softmax comes first here, and the upsampling second.
        """
        probability = anomalous_probability(tokens[:, :, 1:], text, FIXED_SCALE)  # (B, L, P)
        return upsampled(probability, self.backbone.architecture.image_size)

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Four times the maps' losses, plus the image's cross-entropy: `loss`.

        Its parts as they are: `focal`, `dice` of the anomalous side and `dice_normal` of the normal one, summed over
        the levels, and `image`.
        """
        assert targets.mask is not None
        assert targets.label is not None
        with torch.autocast(text.device.type, enabled=False):
            anomalous = self.level_maps(features["tokens"], text)  # (B, L, H, W)
            normal = 1 - anomalous
            target = targets.mask[:, None].to(anomalous.dtype)  # (B, 1, H, W)
            focal = focal_loss(torch.where(target > 0, anomalous, normal))
            dice, dice_normal = dice_loss(anomalous, target), dice_loss(normal, 1 - target)
            logits = F.normalize(features["image"], dim=-1)[:, None] @ text * FIXED_SCALE  # (B, 1, 2)
            image = F.cross_entropy(logits[:, 0], targets.label.long())
        loss = PIXEL_WEIGHT * (focal + dice + dice_normal) + image
        return {"loss": loss, "focal": focal, "dice": dice, "dice_normal": dice_normal, "image": image}

    def from_authors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their prompt learner holds more: token embeddings, which have to be those of the backbone, and layers that
        are never used.

        Raises:
            ValueError: the token embeddings are another backbone's.
        """
        own = self.text.token_embeddings()[:, 0].flatten()  # of the start token, twice
        theirs = [state.get(f"token_prefix_{side}") for side in ("pos", "neg")]
        for prefix in theirs:
            is_own = prefix is None or (
                prefix.numel() * 2 == own.numel()
                and (prefix.flatten().float() - own.cpu()[: prefix.numel()]).abs().max() < _LARGEST_DIFFERENCE
            )
            if not is_own:
                raise ValueError("its token embeddings are not those of the backbone, so it was trained with another")
        return {f"text.{name}": values for name, values in state.items() if self.text.has_place_for(name)}


class LearnedPrompts(TextFeatures):
    """Two learned sentences, the same for all classes: `X ... X object.` and `X ... X damaged object.`

    The first block of the text tower reads `n_ctx` learned tokens in the places of X. Each of the next `depth` - 1
    blocks reads `t_n_ctx` others in the first of these places, instead of what the block before has made of them.

    Parameters have the names and shapes of the authors' checkpoints.

    Args:
        backbone: the frozen CLIP whose text tower reads the sentences.
        n_ctx: see above.
        depth: see above.
        t_n_ctx: see above.

    Raises:
        ValueError: a number is out of range, or the text tower is not CLIP's own.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> text = LearnedPrompts(clip, n_ctx=12, depth=9, t_n_ctx=4)
        >>> text(["cup", "mug"]).shape
        torch.Size([2, 96, 2])
    """

    tokens: Tensor

    def __init__(self, backbone: Backbone, n_ctx: int, depth: int, t_n_ctx: int) -> None:
        super().__init__()
        context = backbone.tokenizer.context_length
        most = context - int((backbone.tokenizer(list(SENTENCES)) > 0).sum(dim=1).max())  # of the tokens behind X
        if not 1 <= n_ctx <= most:
            raise ValueError(f"n_ctx must be from 1 to {most}, but got {n_ctx}")
        if not 1 <= t_n_ctx <= n_ctx:
            raise ValueError(f"t_n_ctx must be from 1 to n_ctx, which is {n_ctx}, but got {t_n_ctx}")
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, but got {depth}")
        if not has_causal_text_tower(backbone.clip):
            raise ValueError(
                f"backbone must have CLIP's own text tower, but {backbone.architecture.name} has another; "
                "choose another backbone or model"
            )
        self.backbone = backbone
        self.n_ctx, self.t_n_ctx = n_ctx, t_n_ctx
        sentences = [" ".join(["X"] * n_ctx + [sentence]) for sentence in SENTENCES]
        self.register_buffer("tokens", backbone.tokenizer(sentences), persistent=False)  # (2, T)
        width = backbone.clip.token_embedding.embedding_dim
        deep = min(depth, len(backbone.clip.transformer.resblocks)) - 1
        self.ctx_pos, self.ctx_neg = (nn.Parameter(_STD * torch.randn(1, 1, n_ctx, width)) for _ in SENTENCES)
        self.compound_prompts_text = nn.ParameterList(_STD * torch.randn(t_n_ctx, width) for _ in range(deep))

    def prepare(self, class_names: Sequence[str], data_set: str) -> None:
        """Do nothing: the sentences name no class."""

    def forward(self, class_names: Sequence[str]) -> Tensor:
        """The two sentences' embeddings for each of B classes: (B, D, 2), unit columns: 0 normal, 1 anomalous."""
        return F.normalize(self.embed(), dim=-1).T.expand(len(class_names), -1, -1)

    def has_place_for(self, name: str) -> bool:
        """Whether a tensor of the authors' file is a learned token that a text tower as deep as this one can read.

        Theirs are as many as their `depth` says, whether the tower has so many blocks or not.
        """
        kind, _, number = name.partition(".")
        if kind == "compound_prompts_text":
            return int(number) < len(self.backbone.clip.transformer.resblocks) - 1
        return kind in ("ctx_pos", "ctx_neg")

    def token_embeddings(self) -> Tensor:
        """What the first block reads, without positions: (2, T, V)."""
        embeddings: Tensor = self.backbone.clip.token_embedding(self.tokens)
        learned = torch.cat([self.ctx_pos[0], self.ctx_neg[0]])  # (2, n_ctx, V)
        return torch.cat([embeddings[:, :1], learned, embeddings[:, 1 + self.n_ctx :]], dim=1)

    def embed(self) -> Tensor:
        """Run the text tower, in float32 whatever the run's precision: (2, D), of any length."""
        with torch.autocast(self.tokens.device.type, enabled=False):
            ends = self.tokens.argmax(dim=1)
            length = int(ends.max()) + 1  # no token's state depends on what follows
            return encode_embeddings(self.backbone.clip, self.token_embeddings()[:, :length], ends, self._replace)

    def _replace(self, number: int, states: Tensor) -> Tensor:
        """Put learned tokens into the states (2, T, V) in front of a block; the authors round them to float16."""
        if not 0 <= number - 2 < len(self.compound_prompts_text):
            return states
        learned = self.compound_prompts_text[number - 2].half().to(states.dtype).expand(len(states), -1, -1)
        return torch.cat([states[:, :1], learned, states[:, 1 + self.t_n_ctx :]], dim=1)
