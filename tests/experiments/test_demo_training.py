"""The losses and the optimizer of the demo backbone's training."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.demo_backbone.batches import Batches
from experiments.demo_backbone.muon import Muon, orthogonalise
from experiments.demo_backbone.objective import PartEvidence, caption_loss, twin_loss
from experiments.demo_backbone.pool import Pool


def pool_of(side: int = 16) -> Pool:
    """One pair: black, and black with a white spot of 4 x 4 pixels."""
    flawless = np.zeros((1, side, side, 3), np.uint8)
    touched = np.zeros((1, side, side), bool)
    touched[0, 4:8, 8:12] = True
    return Pool(flawless, np.where(touched[..., None], 255, flawless).astype(np.uint8), touched, np.array([5]))


def test_damage_is_counted_where_the_image_shows_it() -> None:
    batches = Batches(pool_of(), patch=4, seed=0)
    for window in (16, 8):
        batch = batches.draw(pairs=6, window=window)
        assert batch.category.tolist() == [5] * 12
        white = (batch.images > 1).all(dim=1).float()  # (B, h, w)
        counted = F.avg_pool2d(white[:, None], 4)[:, 0] * 16
        torch.testing.assert_close(batch.damage, counted)
        assert batch.damage[:6].sum() == 0
        assert (batch.damage[6:].sum(dim=(1, 2)) > 0).any()


def test_evidence_of_single_patches_is_cross_entropy() -> None:
    similarity = torch.tensor([[0.1, -0.2, 0.3, 0.0]])
    damage = torch.tensor([[[0.0, 64.0], [0.0, 3.0]]])  # the last patch shows too little to say
    found = PartEvidence([1], slope=10.0)(similarity, damage)
    logits = [10 * s - 3 for s in (0.1, -0.2, 0.3)]
    expected = [math.log1p(math.exp(logits[0])), math.log1p(math.exp(-logits[1])), math.log1p(math.exp(logits[2]))]
    assert float(found.detach()) == pytest.approx(sum(expected) / 3)


def test_one_loud_patch_speaks_for_its_part() -> None:
    damage = torch.zeros(1, 4, 4)
    damage[0, 1, 2] = 64
    evidence = PartEvidence([4], slope=10.0)
    loud, quiet = torch.full((1, 16), -1.0), torch.full((1, 16), -1.0)
    loud[0, 6] = 1.0
    assert float(evidence(loud, damage).detach()) < 0.01 < 1 < float(evidence(quiet, damage).detach())


def test_twins_are_told_apart_at_the_damage_only() -> None:
    damage = torch.zeros(2, 2, 2)
    damage[1, 0, 1] = 20
    logits = torch.tensor([[0.0, 1.0, 5.0, 5.0], [9.0, 3.0, 0.0, 0.0]])
    assert float(twin_loss(logits, damage)) == pytest.approx(math.log1p(math.exp(-2.0)))


def test_captions_are_right_if_any_of_their_side_fits() -> None:
    sentences = F.normalize(torch.eye(4).view(2, 2, 4), dim=-1)  # two sides of two sentences
    images = torch.eye(4)[[1, 2]]  # one fits a sentence of side 0, the other one of side 1
    known = torch.ones(2)
    right = caption_loss(images, sentences, torch.tensor(50.0), torch.tensor([0, 1]), known)
    wrong = caption_loss(images, sentences, torch.tensor(50.0), torch.tensor([1, 0]), known)
    assert float(right) < 0.6 < 40 < float(wrong)


def test_orthogonalised_matrices_keep_their_directions() -> None:
    matrices = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    for shape in (matrices, matrices.transpose(1, 2)):
        found = orthogonalise(shape)
        left, values, right = torch.linalg.svd(shape, full_matrices=False)
        projected = left.transpose(1, 2) @ found @ right.transpose(1, 2)  # diagonal, if the directions are kept
        torch.testing.assert_close(projected, torch.diag_embed(projected.diagonal(dim1=1, dim2=2)), atol=1e-5, rtol=0)
        assert (projected.diagonal(dim1=1, dim2=2) > 0.3).all()
        assert (projected.diagonal(dim1=1, dim2=2) < 1.6).all()
        assert values.max() / values.min() > 3


def test_muon_learns_and_goes_on_from_its_state() -> None:
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    def steps(matrix: nn.Parameter, optimizer: Muon, count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            loss = (matrix - target).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    one = nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([one], lr=0.1)
    first = steps(one, optimizer, 1)
    other = nn.Parameter(one.detach().clone())
    resumed = Muon([other], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(one, optimizer, 100) < first / 20
    steps(other, resumed, 100)
    torch.testing.assert_close(one, other, atol=0, rtol=0)
