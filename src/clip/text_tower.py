"""open_clip's text tower without the positions that say nothing; the embeddings are the same.

K sentences, T tokens of the longest, W width of the text tower, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SENTENCES_PER_BATCH = 64


def encode_tokens(clip: Any, tokens: Tensor) -> Tensor:
    """Embeddings of tokenised sentences: (K, context) -> (K, D), not normalised.

    In a causal tower no token's state depends on what follows, so a batch is cut behind its longest sentence. Batches
    are of sentences of about one length: the longest of the paper's has 18 of 77 tokens, their mean is 13.

    Example:
        >>> import open_clip
        >>> vision = {"layers": 1, "image_size": 16}
        >>> text = {"layers": 1, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 6}
        >>> clip = open_clip.CLIP(4, vision, text)
        >>> tokens = torch.tensor([[8, 1, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0]])
        >>> torch.allclose(encode_tokens(clip, tokens), clip.encode_text(tokens), atol=1e-5)
        True
    """
    if not has_causal_text_tower(clip):
        embeddings: Tensor = clip.encode_text(tokens)
        return embeddings
    ends = tokens.argmax(dim=1)  # (K,), the end-of-text token is the highest
    order = ends.argsort(stable=True)
    batches = []
    for rows in torch.split(order, SENTENCES_PER_BATCH):
        length = int(ends[rows].max()) + 1
        batches.append(encode_embeddings(clip, clip.token_embedding(tokens[rows, :length]), ends[rows]))
    return torch.cat(batches)[order.argsort()]


def encode_embeddings(
    clip: Any, embeddings: Tensor, ends: Tensor, change: Callable[[int, Tensor], Tensor] | None = None
) -> Tensor:
    """Run a causal text tower from token embeddings, such as those of learned prompts.

    Args:
        clip: open_clip's model, see `has_causal_text_tower`.
        embeddings: (K, T, W), of the tokens, without positions.
        ends: (K,), where each sentence's end-of-text token is, below T.
        change: is called in front of each block with its number, counted from 1, and the states (K, T, W), and returns
            what the block shall read, such as states in which some tokens are learned.

    Returns:
        (K, D), not normalised.

    Example:
        >>> import open_clip
        >>> vision = {"layers": 1, "image_size": 16}
        >>> text = {"layers": 1, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 6}
        >>> clip = open_clip.CLIP(4, vision, text)
        >>> encode_embeddings(clip, torch.zeros(2, 3, 8), ends=torch.tensor([2, 1])).shape
        torch.Size([2, 4])
    """
    length = embeddings.shape[1]
    states = embeddings + clip.positional_embedding[:length]
    mask = clip.attn_mask[:length, :length]
    if change is None:
        states = clip.transformer(states, attn_mask=mask)
    else:
        for number, block in enumerate(clip.transformer.resblocks, start=1):
            states = block(change(number, states), attn_mask=mask)
    sentences: Tensor = clip.ln_final(states[torch.arange(len(ends), device=ends.device), ends])  # (K, W)
    projection = clip.text_projection
    if projection is None:
        return sentences
    projected: Tensor = projection(sentences) if isinstance(projection, nn.Module) else sentences @ projection
    return projected  # (K, D)


def has_causal_text_tower(clip: Any) -> bool:
    """Whether no token's state depends on what follows, and a sentence is read at its end-of-text token.

    So it is with CLIP itself. Towers of Hugging Face, CoCa's and SigLIP's are other classes, or are read elsewhere.

    Example:
        >>> import open_clip
        >>> vision = {"layers": 1, "image_size": 16}
        >>> text = {"layers": 1, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 6}
        >>> clip = open_clip.CLIP(4, vision, text)
        >>> has_causal_text_tower(clip)
        True
    """
    return getattr(clip, "text_pool_type", None) == "argmax" and getattr(clip, "attn_mask", None) is not None
