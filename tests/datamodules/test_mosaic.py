"""Mosaics of four training images: where each lies, its mask, its label, and how often."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.mosaic import Mosaics, mosaic_of_images, mosaic_of_masks
from datamodules.mvtec import MVTec
from datamodules.records import ANOMALOUS, NORMAL, Record
from datamodules.samplers import SharedBatchSampler

SIZE = 32
COLOURS = {"good/0": (250, 0, 0), "good/1": (0, 250, 0), "hole/0": (0, 0, 250), "hole/1": (250, 250, 0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of one colour each; the masks of the anomalous ones are full."""
    for name, colour in COLOURS.items():
        path = tmp_path / "cup" / "test" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), colour).save(path)
    for number in (0, 1):
        path = tmp_path / "cup" / "ground_truth" / "hole" / f"{number}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (60, 40), 255).save(path)
    return tmp_path


def batches(root: Path, epochs: int, num_workers: int = 0) -> list[tuple[Tensor, Tensor, int, str]]:
    """Image, mask, label and name of each sample."""
    torch.manual_seed(7)
    data = MVTec(
        root, transforms="mosaic", image_size=SIZE, num_workers=num_workers, mean=(0, 0, 0), std=(1, 1, 1), batch_size=2
    )
    loader = data.train_dataloader()
    samples = []
    assert isinstance(loader.batch_sampler, SharedBatchSampler)
    for epoch in range(epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
        for batch in loader:
            rows = zip(batch["image"], batch["mask"], batch["label"].tolist(), batch["image_path"], strict=True)
            samples += list(rows)
    return samples


def test_a_mosaic_has_four_images_with_their_masks_and_label(root: Path) -> None:
    """Told by the colours alone: each quarter is one image, blue and yellow ones are anomalous in all pixels."""
    samples = batches(root, epochs=100)
    half = SIZE // 2
    mosaics = 0
    places: set[tuple[int, ...]] = set()
    for image, mask, label, name in samples:
        quarters = [
            (image[:, y : y + half, x : x + half], mask[y : y + half, x : x + half])
            for y in (0, half)
            for x in (0, half)
        ]
        colours = [tuple((255 * quarter[:, 8, 8]).round().int().tolist()) for quarter, _ in quarters]
        anomalous = [colour in (COLOURS["hole/0"], COLOURS["hole/1"]) for colour in colours]
        assert set(colours) <= set(COLOURS.values())
        assert [bool(own[8, 8]) for _, own in quarters] == anomalous
        assert all(own.float().mean() in (0, 1) for _, own in quarters)
        assert label == any(anomalous)
        own = COLOURS[name.removeprefix("cup/test/").removesuffix(".png")]
        if set(colours) != {own}:
            mosaics += 1
            places.add(tuple(anomalous))  # type: ignore[arg-type]
    # One in five, less those of four times the image itself: (1 / 4)^4. Four standard deviations of 400 draws.
    assert abs(mosaics / len(samples) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(samples))
    assert len(places) >= 8  # of the 16 ways in which four quarters are normal or anomalous


def test_mosaics_are_the_same_with_any_number_of_workers(root: Path) -> None:
    for one, other in zip(batches(root, epochs=5), batches(root, epochs=5, num_workers=2), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2:] == other[2:]


def test_only_training_images_become_mosaics(root: Path) -> None:
    data = MVTec(root, transforms="mosaic", image_size=SIZE, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    for batch in [batch for _ in range(20) for batch in data.test_dataloader()]:
        assert all(image.flatten(1).std(dim=1).max() == 0 for image in batch["image"])


def test_an_empty_mask_is_that_of_what_the_sample_shows(root: Path) -> None:
    """One of the two anomalous images marks nothing: a mosaic marks nothing if it shows no other anomalous one."""
    Image.new("L", (60, 40), 0).save(root / "cup/ground_truth/hole/0_mask.png")
    data = MVTec(root, transforms="mosaic", image_size=SIZE, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    torch.manual_seed(7)
    loader = data.train_dataloader()
    assert isinstance(loader.batch_sampler, SharedBatchSampler)
    normal_in_place_of_anomalous = 0
    for epoch in range(200):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            marked = batch["mask"].any(dim=(1, 2)).tolist()
            labels = batch["label"].tolist()
            assert batch["mask_is_empty"] == [
                label == 1 and not any_ for label, any_ in zip(labels, marked, strict=True)
            ]
            names = zip(batch["image_path"], labels, strict=True)
            normal_in_place_of_anomalous += sum("hole" in name and label == 0 for name, label in names)
    assert normal_in_place_of_anomalous > 0


def test_images_of_other_sizes_take_the_size_of_the_first() -> None:
    red, blue = Image.new("RGB", (30, 20), (250, 0, 0)), Image.new("RGB", (9, 50), (0, 0, 250))
    grey = Image.new("L", (40, 10), 100)
    pixels = np.asarray(mosaic_of_images([red, blue, grey, red]))
    assert pixels.shape == (40, 60, 3)
    corners = [pixels[:20, :30], pixels[:20, 30:], pixels[20:, :30], pixels[20:, 30:]]
    colours = [(250, 0, 0), (0, 0, 250), (100, 100, 100), (250, 0, 0)]
    assert all((corner == colour).all() for corner, colour in zip(corners, colours, strict=True))

    half = np.repeat(np.array([[0, 1]], np.uint8), 5, axis=1)  # (1, 10), the right half anomalous
    mask = mosaic_of_masks([np.zeros((20, 30), np.uint8), half, half, np.ones((7, 3), np.uint8)])
    assert mask.shape == (40, 60)
    assert set(np.unique(mask)) == {0, 1}
    expected = np.zeros((40, 60), np.uint8)
    expected[:20, 45:] = expected[20:, 15:] = 1
    assert (mask == expected).all()


def test_kinds_of_damage_are_equally_likely_however_many_images_they_have() -> None:
    names = [f"good/{number}" for number in range(8)] + ["hole/0"]
    labels = [NORMAL] * 8 + [ANOMALOUS]
    records = [
        Record(Path(f"cup/test/{name}.png"), "cup", label, None) for name, label in zip(names, labels, strict=True)
    ]
    records.append(Record(Path("nut/test/good/0.png"), "nut", NORMAL, None))
    mosaics = Mosaics(records)
    drawn = [one for number in range(3000) for one in mosaics.draw("cup", (7, 0, number)) or []]
    assert {one.category for one in drawn} == {"cup"}
    share = Counter(one.label for one in drawn)[ANOMALOUS] / len(drawn)
    assert abs(share - 0.5) < 4 * np.sqrt(0.5 * 0.5 / len(drawn))


def test_what_is_served_is_no_mosaic(root: Path) -> None:
    data = MVTec(root, transforms="mosaic", image_size=SIZE, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    data.serve("train", {record: {"mask": torch.zeros(SIZE, SIZE)} for record in data.records})
    loader = data.train_dataloader()
    assert isinstance(loader.batch_sampler, SharedBatchSampler)
    for epoch in range(20):
        loader.batch_sampler.sampler.set_epoch(epoch)
        assert [batch["label"].tolist() for batch in loader] == [[0, 0, 1, 1]]
