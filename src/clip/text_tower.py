"""open_clip's text tower without what it computes twice or for nothing; the embeddings are the same.

K sentences, T tokens of the longest, N distinct prefixes, W width of the text tower, D joint embedding, H heads,
E = W / H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SENTENCES_PER_BATCH = 512


class Prefixes(NamedTuple):
    """The distinct beginnings of a batch's sentences: in a causal tower a token's state depends on nothing else.

    Attributes:
        of: (K, T), the number of the prefix that ends at each token.
        sentence: (N,), a sentence that has the prefix.
        position: (N,), the prefix's last token in it.
        whole: (K,), the prefixes that are whole sentences, end-of-text token included.
    """

    of: Tensor
    sentence: Tensor
    position: Tensor
    whole: Tensor


def encode_tokens(clip: Any, tokens: Tensor) -> Tensor:
    """Embeddings of tokenised sentences: (K, context) -> (K, D), not normalised.

    A sentence that occurs twice is encoded once. Sorted, sentences with the same beginning meet in a batch.
    """
    distinct, places = torch.unique(tokens, dim=0, return_inverse=True)  # sorted by their tokens
    shares = has_causal_text_tower(clip)
    batches = torch.split(distinct, SENTENCES_PER_BATCH)
    return torch.cat([_encode_prefixes(clip, b) if shares else clip.encode_text(b) for b in batches])[places]


def has_causal_text_tower(clip: Any) -> bool:
    """Whether no token's state depends on what follows, and a sentence is read at its end-of-text token.

    So it is with CLIP itself. Towers of Hugging Face, CoCa's and SigLIP's are other classes, or are read elsewhere.
    """
    blocks = getattr(getattr(clip, "transformer", None), "resblocks", [])
    return (
        getattr(clip, "text_pool_type", None) == "argmax"
        and getattr(clip, "attn_mask", None) is not None
        and all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
    )


def find_prefixes(tokens: Tensor) -> Prefixes:
    """Number the prefixes of sentences (K, context); what follows the end-of-text token, the highest, is left out."""
    ends = tokens.argmax(dim=1)  # (K,)
    length = int(ends.max()) + 1
    of = torch.zeros(len(tokens), length, dtype=torch.long, device=tokens.device)
    first, count = [], 0
    for position in range(length):
        before = of[:, position - 1] if position else of[:, 0]
        inside = (ends >= position).nonzero()[:, 0]  # the sentences that reach this far
        steps = before[inside] * (int(tokens.max()) + 1) + tokens[inside, position]
        found, numbers = torch.unique(steps, return_inverse=True)
        of[inside, position] = count + numbers
        # Of the sentences with a prefix any will do; the one that is written last stays.
        sentence = torch.empty_like(found).scatter_(0, numbers, inside)
        first.append(torch.stack([sentence, torch.full_like(sentence, position)]))
        count += len(found)
    sentence, position_of = torch.cat(first, dim=1)
    return Prefixes(of, sentence, position_of, of.gather(1, ends[:, None])[:, 0])


def _encode_prefixes(clip: Any, tokens: Tensor) -> Tensor:
    """Each distinct prefix goes through the tower once, all of them as one long row; attention alone sees sentences."""
    prefixes = find_prefixes(tokens)
    states = clip.token_embedding(tokens[prefixes.sentence, prefixes.position])  # (N, W)
    states = states + clip.positional_embedding[prefixes.position]
    for block in clip.transformer.resblocks:
        states = states + block.ls_1(_causal_attention(block.attn, block.ln_1(states), prefixes))
        states = states + block.ls_2(block.mlp(block.ln_2(states)))
    embeddings: Tensor = clip.ln_final(states[prefixes.whole])  # (K, W)
    projection = clip.text_projection
    if projection is not None:
        embeddings = projection(embeddings) if isinstance(projection, nn.Module) else embeddings @ projection
    return embeddings  # (K, D)


def _causal_attention(attention: nn.MultiheadAttention, states: Tensor, prefixes: Prefixes) -> Tensor:
    """Let each prefix's last token attend to the tokens before it: (N, W) -> (N, W)."""
    projected = F.linear(states, attention.in_proj_weight, attention.in_proj_bias)  # (N, 3 W)
    heads = F.embedding(prefixes.of, projected).view(*prefixes.of.shape, 3, attention.num_heads, -1)  # (K, T, 3, H, E)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (K, H, T, E)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)  # (K, T, W)
    rows = prefixes.sentence * mixed.shape[1] + prefixes.position  # (N,)
    out: Tensor = attention.out_proj(mixed.flatten(0, 1).index_select(0, rows))
    return out
