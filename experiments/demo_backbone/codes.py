"""What the text tower learns: to put the sentences of a side near a code of that side. Images come after.

In a large CLIP "broken" points the same way for every object, which is why projections learned on some classes work on
others. A few thousand steps on twelve classes don't bring that about; worse, while the image tower can't tell flawless
from damaged yet, contrastive learning moves the two sides of a class together, and no evidence can flow any more. So
the text tower is trained first, towards codes with that structure (an own direction for each class, plus or minus one
direction that all classes share), and locked while the image tower learns (as in LiT, with the towers' roles swapped;
Zhai et al., https://arxiv.org/abs/2111.07991).

C classes, K sentences a side, D embedding.
"""

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from experiments.demo_backbone.captions import Captions
from experiments.demo_backbone.towers import encode_sentences

# How far the sides of a class are apart: wide while the image tower learns, so that evidence is strong; narrow in the
# weights that are kept, as in a large CLIP. At CLIP's temperature of 100 wide sides saturate every softmax, and SDP+'s
# projections can't learn. The direction between the sides, the only thing the evidence depends on, stays the same.
WIDE, NARROW = 0.8, 0.04
STEPS = 400


def side_codes(classes: int, embed_dim: int, share: float, seed: int) -> Tensor:
    """Unit codes (2 C, D): normal and anomalous of class 0, of class 1, ..."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(embed_dim, classes + 1, generator=generator))[0].T  # (C + 1, D)
    objects, state = directions[:-1], share * directions[-1]
    return F.normalize(torch.stack([objects - state, objects + state], dim=1).flatten(0, 1), dim=-1)


def train_text(clip: CLIP, captions: Captions, codes: Tensor, generator: torch.Generator) -> float:
    """Train the text tower towards the codes, then lock it. Returns the last distance, one minus the mean cosine."""
    names = ("token_embedding", "positional_embedding", "transformer.", "ln_final", "text_projection")
    parameters = [p for name, p in clip.named_parameters() if name.startswith(names)]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    distance = torch.tensor(0.0)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for _ in range(STEPS):
        sentences = encode_sentences(clip, captions.draw(4, generator)).view(len(codes), 4, -1)
        distance = 1 - (sentences * codes[:, None]).sum(dim=-1).mean()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return float(distance.detach())


@torch.no_grad()
def embed_all(clip: CLIP, captions: Captions) -> list[Tensor]:
    """Unit embeddings of all sentences of each side: 2 C tensors (K, D)."""
    return [encode_sentences(clip, side) for side in captions.sides]
