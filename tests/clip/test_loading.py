"""What is left out when a model's values come from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.serialization import config as torch_files

from src.clip.loading import values_from


def build() -> None:
    nn.init.normal_(nn.Linear(4, 4).weight)
    nn.init.xavier_uniform_(torch.empty(4, 4))
    nn.init.trunc_normal_(torch.empty(4, 4))
    nn.MultiheadAttention(8, 2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_nothing_is_drawn_for_values_from_a_file(weights: Path) -> None:
    before = torch.get_rng_state()
    with values_from(weights):
        build()
    assert torch.equal(torch.get_rng_state(), before)


def test_values_from_nowhere_are_drawn_as_ever() -> None:
    torch.manual_seed(0)
    expected = nn.Linear(4, 4).weight
    torch.manual_seed(0)
    with values_from(None):
        assert torch.equal(nn.Linear(4, 4).weight, expected)


def test_a_file_is_mapped_and_stays_as_it_is(weights: Path) -> None:
    before = weights.read_bytes()
    with values_from(weights):
        assert torch_files.load.mmap
        torch.load(weights)["a"] += 1
    assert weights.read_bytes() == before
    assert not torch_files.load.mmap
