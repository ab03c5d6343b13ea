"""Feature surgery against the products (B, N, 2, D) that the reference forms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from src.models.surgery import surgery_similarity
from tests.small_clip import random_text


def naive(tokens: Tensor, text: Tensor) -> np.ndarray:
    f, t = tokens.double().numpy(), text.double().numpy()
    similarity = np.zeros((*tokens.shape[:2], 2))
    for image in range(len(f)):
        exponentials = np.exp(f[image, 0] @ t[image])  # CLS with both classes
        weights = exponentials / exponentials.sum()
        weights = weights / weights.mean()
        products = f[image][:, None, :] * t[image].T[None]  # (N, 2, D)
        products = products * weights[None, :, None]
        products = products - products.mean(axis=1, keepdims=True)
        similarity[image] = products.sum(axis=-1)
    return similarity


def random_tokens(batch: int = 3, length: int = 10, embed_dim: int = 24) -> Tensor:
    tokens = torch.randn(batch, length, embed_dim, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(tokens, dim=-1)


def test_similarity_is_the_naive_one() -> None:
    tokens, text = random_tokens(), random_text(3)
    np.testing.assert_allclose(surgery_similarity(tokens, text).numpy(), naive(tokens, text), rtol=0, atol=1e-6)


def test_the_two_classes_cancel() -> None:
    similarity = surgery_similarity(random_tokens(), random_text(3))
    torch.testing.assert_close(similarity[..., 0], -similarity[..., 1])


def test_classes_that_say_the_same_say_nothing() -> None:
    text = random_text(3)
    same = text[..., :1].expand(-1, -1, 2)
    torch.testing.assert_close(surgery_similarity(random_tokens(), same), torch.zeros(3, 10, 2))


def test_a_token_close_to_the_anomalous_text_scores_higher() -> None:
    text = random_text(1)
    tokens = torch.stack([text[0, :, 0] + text[0, :, 1], text[0, :, 0], text[0, :, 1]])[None]
    similarity = surgery_similarity(torch.nn.functional.normalize(tokens, dim=-1), text)
    assert similarity[0, 2, 1] > 0 > similarity[0, 1, 1]
