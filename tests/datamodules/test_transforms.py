"""The albumentations pipeline against torchvision's, which the reference uses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from datamodules.errors import UserError
from datamodules.images import CLIP_MEAN, CLIP_STD, load_mask, open_image
from datamodules.transforms import Transform, normalise

SIZE = 24


def torchvision_image(path: Path, size: int) -> torch.Tensor:
    pipeline = tv.Compose(
        [
            tv.Resize((size, size), interpolation=tv.InterpolationMode.BICUBIC),
            tv.ToTensor(),
            tv.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return pipeline(Image.open(path).convert("RGB"))


def torchvision_mask(path: Path, size: int) -> torch.Tensor:
    binary = Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8))
    return (tv.ToTensor()(tv.Resize((size, size))(binary)) > 0.5)[0]


def assert_same(image_path: Path, mask_path: Path, size: int) -> None:
    transform = Transform("default", size, size, CLIP_MEAN, CLIP_STD)
    result = transform(open_image(image_path), load_mask(mask_path))
    assert result["image"].shape == (3, size, size)
    assert result["image"].dtype == torch.float32
    torch.testing.assert_close(result["image"], torchvision_image(image_path, size), rtol=0, atol=1e-6)
    assert result["mask"].dtype == torch.uint8
    assert torch.equal(result["mask"].bool(), torchvision_mask(mask_path, size))


@pytest.mark.parametrize("shape", [(100, 70), (24, 24), (10, 15)])
def test_agrees_with_torchvision(tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8)).save(tmp_path / "m.png")
    assert_same(tmp_path / "a.png", tmp_path / "m.png", SIZE)


@pytest.mark.data
@pytest.mark.parametrize(("size", "every"), [(240, 2), (518, 5)])
def test_agrees_with_torchvision_on_real_images(real_data: Path, size: int, every: int) -> None:
    masks = [
        *sorted(real_data.glob("mvtec/*/ground_truth/*/000_mask.png")),
        *sorted(real_data.glob("visa/*/Data/Masks/Anomaly/*.png"))[::8],
    ]
    assert len(masks) >= 13
    for mask in masks[::every]:
        if "ground_truth" in mask.parts:
            image = mask.parents[2] / "test" / mask.parent.name / "000.png"
        else:
            image = mask.parents[2] / "Images" / "Anomaly" / f"{mask.stem}.JPG"
        assert_same(image, mask, size)


def test_mask_sizes() -> None:
    image, mask = Image.new("RGB", (30, 20)), np.ones((20, 30), np.uint8)
    for mask_size, shape in ((SIZE, (SIZE, SIZE)), (50, (50, 50)), (None, (20, 30))):
        result = Transform("default", SIZE, mask_size, CLIP_MEAN, CLIP_STD)(image, mask)
        assert result["image"].shape == (3, SIZE, SIZE)
        assert result["mask"].shape == shape
        assert result["mask"].min() == 1


def marked(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright rectangle on black and its mask, after the augmentation that the seed draws."""
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 4:40] = 1
    transform = Transform("augment", 64, 64, (0, 0, 0), (1, 1, 1))
    result = transform(Image.fromarray(mask * 200), mask, [seed])
    return result["image"], result["mask"]


def test_augmentation_moves_image_and_mask_together() -> None:
    for seed in range(40):
        image, mask = marked(seed)
        assert set(mask.unique().tolist()) == {0, 1}
        # Bilinear image, nearest mask: only pixels on the rectangle's edge may differ.
        assert ((image[0] > 0.3) != mask.bool()).float().mean() < 0.03


def test_augmentation_draws_flips_independently() -> None:
    # Left, right, top and bottom differ in brightness by so much that no colour jitter hides which is where.
    pixels = np.full((SIZE, SIZE), 100, np.uint8)
    pixels[:, : SIZE // 2] += 80
    pixels[: SIZE // 2] += 40
    transform = Transform("augment", SIZE, SIZE, (0, 0, 0), (1, 1, 1))
    seen = set()
    for seed in range(200):
        image = transform(Image.fromarray(pixels), seed=[seed])["image"].mean(dim=0)
        left, top = image[:, : SIZE // 2].mean() > image.mean(), image[: SIZE // 2].mean() > image.mean()
        across = abs(image[:, : SIZE // 2].mean() - image.mean()) > abs(image[: SIZE // 2].mean() - image.mean())
        seen.add((bool(left), bool(top), bool(across)))
    assert len(seen) == 8  # all flips and turns of a square


def test_augmentation_follows_its_seed() -> None:
    assert torch.equal(marked(3)[0], marked(3)[0])
    assert len({marked(seed)[0].numpy().tobytes() for seed in range(20)}) > 15


def test_a_grey_image_is_resized_as_its_three_channels_are() -> None:
    grey = Image.fromarray(np.random.default_rng(2).integers(0, 256, (70, 50), dtype=np.uint8))
    transform = Transform("default", SIZE, None, CLIP_MEAN, CLIP_STD)
    assert torch.equal(transform(grey)["image"], transform(grey.convert("RGB"))["image"])


def test_normalisation_is_albumentations_to_the_bit() -> None:
    Transform("augment", SIZE, SIZE, CLIP_MEAN, CLIP_STD)  # it keeps albumentations from asking the network
    import albumentations as A

    image = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    expected = A.Normalize(CLIP_MEAN, CLIP_STD)(image=image)["image"].transpose(2, 0, 1)
    assert np.array_equal(normalise(image, np.float32(CLIP_MEAN), np.float32(CLIP_STD)), expected)


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UserError, match="one of default, augment, mosaic, but got 'strong'"):
        Transform("strong", SIZE, SIZE, CLIP_MEAN, CLIP_STD)
