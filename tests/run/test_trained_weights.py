"""Trained parameters on disk, and what is said about files that don't fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules.errors import UserError
from src.clip.backbone import Backbone
from src.models.anomalyclip import AnomalyCLIP
from src.models.april_gan import AprilGAN
from src.models.method import Features, Method, Scores
from src.models.sdp import SDP
from src.models.sdp_plus import LevelProjections, SDPPlus
from src.run.trained_weights import Origin, load_trained_weights, read_trained_weights, write_trained_weights
from tests.small_clip import PROMPTS

ORIGIN: Origin = {
    "model": {"feature_layers": [3, 6, 9, 12], "smoothing_sigma": 8.0},
    "prompts": {"templates": ["a photo of a {}."]},
    "backbone": {"name": "tiny", "file": None, "sha256": None},
    "trained_on": {
        "name": "visa",
        "title": "VisA",
        "split": "test",
        "categories": ["candle"],
        "held_out": [],
        "images": 2162,
        "is_whole": False,
    },
    "epochs": 5,
}


class Projections(Method):
    """A method of projections alone, of any size."""

    name = "projections"
    authors_key = "linear_layers"

    def __init__(self, levels: int = 4, width: int = 32, embed_dim: int = 24) -> None:
        super().__init__()
        self.projections = LevelProjections(levels, width, embed_dim)
        self.tower = nn.Linear(3, 3).requires_grad_(False)

    def score(self, features: Features, text: Tensor) -> Scores:
        raise NotImplementedError

    def from_authors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"projections.{name}": values for name, values in state.items()}


def fitting(path: Path, method: Method | None = None) -> None:
    load_trained_weights(method or Projections(), read_trained_weights(path), path)


def assert_same(one: Method, other: Method) -> None:
    a, b = one.trainable_parameters(), other.trainable_parameters()
    assert a.keys() == b.keys()
    assert len(a) == 8
    assert all(torch.equal(a[name], b[name]) for name in a)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def reference_state(method: Projections) -> dict[str, Tensor]:
    return method.projections.state_dict()


def test_parameters_and_their_origin_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sdp_plus.trained_on_visa.safetensors"
    trained, other = Projections(), Projections()
    write_trained_weights(path, trained, ORIGIN)
    weights = read_trained_weights(path)
    assert weights.origin == ORIGIN
    load_trained_weights(other, weights, path)
    assert_same(other, trained)
    assert all(parameter.requires_grad for parameter in other.trainable_parameters().values())


def test_a_real_sdp_plus_comes_back_without_its_tower(tiny: Backbone, tmp_path: Path) -> None:
    one, other = (SDPPlus(tiny, PROMPTS, representative="mean") for _ in range(2))
    write_trained_weights(tmp_path / "w.safetensors", one, ORIGIN)
    fitting(tmp_path / "w.safetensors", other)
    assert_same(other, one)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert set(file.keys()) == {f"projections.fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}


def test_the_papers_file_is_small(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_trained_weights(path, Projections(4, 896, 640), ORIGIN)
    assert 4 * 2_296_320 < path.stat().st_size < 12e6


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_can_read_the_file_as_far_as_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    earlier = os.umask(umask)
    try:
        write_trained_weights(tmp_path / "w.safetensors", Projections(), ORIGIN)
    finally:
        os.umask(earlier)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_lightning_checkpoint_is_read(tmp_path: Path) -> None:
    trained, other = Projections(), Projections()
    state = {f"method.{name}": p.detach() for name, p in trained.trainable_parameters().items()}
    path = save(tmp_path / "last.ckpt", {"state_dict": state, "epoch": 4, "origin": ORIGIN, "optimizer_states": [{}]})
    assert read_trained_weights(path).origin == ORIGIN
    fitting(path, other)
    assert_same(other, trained)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_the_references_file_is_read_and_says_nothing_about_itself(suffix: str, tmp_path: Path) -> None:
    trained, other = Projections(), Projections()
    path = save(tmp_path / f"epoch_5{suffix}", {"linear_layers": reference_state(trained)})
    assert read_trained_weights(path).origin == {}
    fitting(path, other)
    assert_same(other, trained)


def test_another_methods_file_is_named(tiny: Backbone, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"prompt_learner": {"ctx_pos": torch.zeros(1)}})
    with pytest.raises(
        UserError, match=r"holds 'prompt_learner', but .* of model projections hold them under 'linear_l"
    ):
        fitting(path)


def test_another_methods_parameters_of_the_same_shapes_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    """SDP+'s and APRIL-GAN's have the same names and shapes. A class that is derived from the trained one may."""

    class Mine(SDPPlus):
        name = "mine"

    path, trained = tmp_path / "sdp_plus.safetensors", SDPPlus(tiny, PROMPTS)
    write_trained_weights(path, trained, {"model": {"_target_": "src.models.sdp_plus.SDPPlus"}})
    with pytest.raises(UserError, match="was trained as SDPPlus, but model april_gan is AprilGAN; choose the model"):
        fitting(path, AprilGAN(tiny, PROMPTS))
    mine = Mine(tiny, PROMPTS)
    fitting(path, mine)
    assert_same(mine, trained)


def test_authors_prompts_of_another_backbone_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    """Their file holds the start token's embedding twice; it has to be that of the backbone."""
    method = AnomalyCLIP(tiny, PROMPTS)
    start = tiny.clip.token_embedding.weight[49406].detach().clone()
    state = {name.removeprefix("text."): value.detach() for name, value in method.trainable_parameters().items()}
    right = state | {f"token_prefix_{side}": start.half().view(1, 1, 1, -1) for side in ("pos", "neg")}
    more = {"tokenized_prompts_pos": torch.ones(1).int(), "compound_prompts_text.0": torch.ones(4, 32)}  # of block 2
    fitting(save(tmp_path / "right.pth", {"prompt_learner": right | more}), method)
    for wrong in (start + 0.01, start[:16], torch.cat([start, start])):
        path = save(tmp_path / "w.pth", {"prompt_learner": right | {"token_prefix_neg": wrong.view(1, 1, 1, -1)}})
        with pytest.raises(UserError, match=r"w\.pth does not fit the model: its token embeddings are not those"):
            fitting(path, method)


def test_half_precision_parameters_are_widened(tmp_path: Path) -> None:
    trained, other = Projections(), Projections()
    fitting(
        save(tmp_path / "w.pth", {"linear_layers": {k: v.half() for k, v in reference_state(trained).items()}}), other
    )
    for name, parameter in other.trainable_parameters().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, trained.trainable_parameters()[name].half().float())


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(UserError, match=rf"ckpt_path: expected a file, but there is none at {path}$"):
            read_trained_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04 cut short", b"N.", b"\x80\x04."])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_is_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"ckpt_path: can't read .*garbage{suffix}"):
        read_trained_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_an_empty_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"empty{suffix}"
    path.touch()
    with pytest.raises(UserError, match=rf"ckpt_path: can't read .*empty{suffix}"):
        read_trained_weights(path)


@pytest.mark.parametrize("content", [{}, [], 3, {"model": {}}, {"linear_layers": [1]}, torch.zeros(2)])
def test_another_content_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt_path: expected a Lightning checkpoint.*other\.pth is none of them"):
        read_trained_weights(save(tmp_path / "other.pth", content))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    with pytest.raises(UserError, match="can't read"):
        read_trained_weights(save(tmp_path / "evil.pth", {"linear_layers": Evil()}))
    assert not (tmp_path / "ran").exists()


def test_another_number_of_levels_is_refused(tmp_path: Path) -> None:
    write_trained_weights(tmp_path / "w.safetensors", Projections(levels=3), ORIGIN)
    with pytest.raises(UserError, match=r"w\.safetensors.*expected 8 tensors.*found 6.*feature_layers"):
        fitting(tmp_path / "w.safetensors")


def test_another_shape_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    write_trained_weights(tmp_path / "w.safetensors", Projections(width=48), ORIGIN)
    method = Projections()
    before = {name: p.clone() for name, p in method.trainable_parameters().items()}
    with pytest.raises(UserError, match=r"fc\.0\.weight has shape \(24, 48\), expected \(24, 32\).*another backbone"):
        fitting(tmp_path / "w.safetensors", method)
    assert all(torch.equal(p, before[name]) for name, p in method.trainable_parameters().items())


def test_a_method_that_trains_nothing_takes_no_checkpoint(tiny: Backbone, tmp_path: Path) -> None:
    write_trained_weights(tmp_path / "w.safetensors", Projections(), ORIGIN)
    with pytest.raises(UserError, match=r"model sdp has nothing to train.*remove ckpt_path"):
        fitting(tmp_path / "w.safetensors", SDP(tiny, PROMPTS, feature_layers=[12], representative="mean"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensor: tensor.int(),
        lambda tensor: tensor.bool(),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_tensors_that_are_no_trained_numbers_are_refused(spoil: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    state = reference_state(Projections())
    name = next(iter(state))
    path = save(tmp_path / "w.pth", {"linear_layers": state | {name: spoil(state[name])}})
    with pytest.raises(UserError, match=rf"ckpt_path: (expected floating-point .* projections\.{name}|can't read)"):
        fitting(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    method = Projections()
    with torch.no_grad():
        method.projections.fc[1].weight[2, 3] = value
    with pytest.raises(UserError, match=r"not finite \(projections\.fc\.1\.weight\), so they are not written"):
        write_trained_weights(tmp_path / "w.safetensors", method, ORIGIN)
    assert not list(tmp_path.iterdir())
    save_file(method.trainable_parameters(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors has values in projections\.fc\.1\.weight that are not finite"):
        fitting(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "origin",
    [
        3,
        [],
        "text",
        {"model": 3},
        {"backbone": {}},
        {"backbone": {"file": 1, "sha256": None}},
        {"trained_on": {"name": "visa"}},
        {"cut_short_by": "max_steps"},
        {"epochs": "many"},
    ],
)
def test_a_strange_origin_is_damaged(origin: Any, tmp_path: Path) -> None:
    method = Projections()
    write_trained_weights(tmp_path / "w.safetensors", method, origin)
    state = {f"method.{name}": p.detach() for name, p in method.trainable_parameters().items()}
    save(tmp_path / "last.ckpt", {"state_dict": state, "origin": origin})
    for name in ("w.safetensors", "last.ckpt"):
        with pytest.raises(UserError, match=rf"{name} is damaged: "):
            read_trained_weights(tmp_path / name)


@pytest.mark.parametrize("header", ["", "{", "[" * 10_000, '{"epochs": NaN}'])
def test_a_header_that_is_no_origin_is_damaged(header: str, tmp_path: Path) -> None:
    save_file(dict(Projections().state_dict()), tmp_path / "w.safetensors", {"origin": header})
    with pytest.raises(UserError, match=r"w\.safetensors is damaged: "):
        read_trained_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("key", [3, None, ("a", "b")])
def test_parameters_without_a_name_are_refused(key: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none of them"):
        read_trained_weights(save(tmp_path / "w.ckpt", {"state_dict": {key: torch.zeros(1)}}))
