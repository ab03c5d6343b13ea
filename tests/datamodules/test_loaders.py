"""Loaders: what is in a batch, options, reproducible augmentation, errors from workers."""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.folder import Folder
from datamodules.mvtec import MVTec
from datamodules.samplers import SharedBatchSampler
from datamodules.visa import VisA
from tests.datamodules.helpers import SIZE, save_image, save_mask

pytestmark = pytest.mark.filterwarnings("ignore:.*is there only in part")


def mvtec(root: Path, **options: Any) -> MVTec:
    return MVTec(root, **{"image_size": 16, "batch_size": 4, "num_workers": 0, **options})


def batches(loader: Any) -> list[dict[str, Any]]:
    return list(loader)


def test_batches(mvtec_root: Path) -> None:
    found = batches(mvtec(mvtec_root).test_dataloader())
    assert [len(batch["image"]) for batch in found] == [4, 4, 2]
    first = found[0]
    assert set(first) == {"image", "mask", "mask_is_empty", "label", "category", "image_path"}
    assert (first["image"].shape, first["image"].dtype) == ((4, 3, 16, 16), torch.float32)
    assert (first["mask"].shape, first["mask"].dtype) == ((4, 16, 16), torch.uint8)
    assert first["label"].dtype == torch.int64
    assert first["label"].tolist() == [1, 0, 0, 1]
    assert first["category"] == ["bottle"] * 4
    assert first["image_path"][0] == "bottle/test/broken/000.png"
    # The mask's first 4 of 30 columns are 2.1 of 16; normal images have no mask file.
    assert first["mask"].sum(dim=(1, 2)).tolist() == [32, 0, 0, 32]


@pytest.mark.parametrize("name", ["train_dataloader", "test_dataloader", "predict_dataloader"])
def test_order_is_that_of_the_records(visa_root: Path, name: str) -> None:
    data = VisA(visa_root, image_size=8, batch_size=3, num_workers=0)
    paths = [path for batch in batches(getattr(data, name)()) for path in batch["image_path"]]
    assert paths == [record.image_path.relative_to(visa_root).as_posix() for record in data.records]


def test_eval_size_is_for_test_masks_only(mvtec_root: Path) -> None:
    data = mvtec(mvtec_root, eval_size=40, val_categories=["screw"])
    assert batches(data.test_dataloader())[0]["mask"].shape == (4, 40, 40)
    assert batches(data.train_dataloader())[0]["mask"].shape == (4, 16, 16)
    assert batches(data.val_dataloader())[0]["mask"].shape == (4, 16, 16)
    assert batches(data.test_dataloader())[0]["image"].shape == (4, 3, 16, 16)


def test_native_masks_are_a_list(mvtec_root: Path) -> None:
    save_image(mvtec_root / "bottle/test/broken/000.png", 0, size=(50, 10))
    save_mask(mvtec_root / "bottle/ground_truth/broken/000_mask.png", columns=7, value=3, size=(50, 10))
    first = batches(mvtec(mvtec_root, eval_size="native").test_dataloader())[0]
    assert [tuple(mask.shape) for mask in first["mask"]] == [(50, 10), SIZE, SIZE, SIZE]
    assert [int(mask.sum()) for mask in first["mask"]] == [350, 0, 0, 4 * SIZE[0]]
    assert first["image"].shape == (4, 3, 16, 16)


def test_without_labels_or_masks(photos: Path) -> None:
    options = {"image_size": 8, "num_workers": 0}
    assert set(batches(Folder(photos, **options).predict_dataloader())[0]) == {"image", "category", "image_path"}
    labelled = batches(Folder(photos, normal_dir="ok", anomalous_dir="bad", **options).test_dataloader())[0]
    assert "mask" not in labelled
    assert labelled["label"].tolist() == [0, 0, 1, 1]


def test_val_categories_are_held_out(mvtec_root: Path) -> None:
    data = mvtec(mvtec_root, val_categories=["screw"])
    assert {name for batch in data.train_dataloader() for name in batch["category"]} == {"bottle"}
    assert {name for batch in batches(data.val_dataloader()) for name in batch["category"]} == {"screw"}
    assert {name for batch in data.test_dataloader() for name in batch["category"]} == {"bottle", "screw"}
    assert mvtec(mvtec_root).val_dataloader() == []


def test_only_training_is_augmented_and_shuffled(mvtec_root: Path) -> None:
    plain = mvtec(mvtec_root, val_categories=["screw"])
    data = mvtec(mvtec_root, val_categories=["screw"], transforms="augment", shuffle=True)
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        for ours, theirs in zip(getattr(data, name)(), getattr(plain, name)(), strict=True):
            assert torch.equal(ours["image"], theirs["image"])
    loader = data.train_dataloader()
    assert isinstance(loader.batch_sampler, SharedBatchSampler)
    orders = set()
    for epoch in range(8):
        loader.batch_sampler.sampler.set_epoch(epoch)
        orders.add(tuple(path for batch in loader for path in batch["image_path"]))
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_normalisation_can_be_chosen(mvtec_root: Path) -> None:
    data = mvtec(mvtec_root, image_size=30, mean=(0, 0, 0), std=(1, 1, 1))
    Image.fromarray(np.full((*SIZE, 3), 51, np.uint8)).save(mvtec_root / "bottle/test/broken/000.png")
    assert batches(data.test_dataloader())[0]["image"][0].unique().tolist() == pytest.approx([0.2])


# Augmentation


def epochs(root: Path, count: int, transforms: str = "augment", **options: Any) -> list[dict[str, Tensor]]:
    """Image path -> augmented image, for each epoch of a run of its own."""
    seed_everything(7, workers=True)
    loader = mvtec(root, transforms=transforms, batch_size=2, **options).train_dataloader()
    assert isinstance(loader.batch_sampler, SharedBatchSampler)
    seen = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
        images = {p: image for batch in loader for p, image in zip(batch["image_path"], batch["image"], strict=True)}
        seen.append(images)
    return seen


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[bool]:
    assert first.keys() == second.keys()
    return [torch.equal(first[path], second[path]) for path in first]


@pytest.mark.parametrize("shuffle", [False, True])
def test_augmentation_repeats_with_any_number_of_workers(mvtec_root: Path, shuffle: bool) -> None:
    alone = epochs(mvtec_root, 3, shuffle=shuffle)
    for workers in (0, 2):
        again = epochs(mvtec_root, 3, shuffle=shuffle, num_workers=workers)
        assert [all(same(*pair)) for pair in zip(alone, again, strict=True)] == [True] * 3
    assert sum(same(alone[0], alone[1])) <= 2
    assert sum(same(alone[1], alone[2])) <= 2


def test_images_do_not_share_their_draws(mvtec_root: Path) -> None:
    for path in mvtec_root.glob("*/test/*/*.png"):
        save_image(path, seed=0)  # one and the same image everywhere
    images = epochs(mvtec_root, 1, num_workers=2)[0].values()
    assert len({image.numpy().tobytes() for image in images}) >= 8


def test_augmentation_needs_another_seed_to_change(mvtec_root: Path) -> None:
    first = epochs(mvtec_root, 1)[0]
    seed_everything(8, workers=True)
    loader = mvtec(mvtec_root, transforms="augment").train_dataloader()
    other = {path: image for batch in loader for path, image in zip(batch["image_path"], batch["image"], strict=True)}
    assert sum(same(first, other)) <= 2


class Recorder(LightningModule):
    """Keeps the images of each training epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, dict[str, Tensor]] = {}

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        images = dict(zip(batch["image_path"], batch["image"], strict=True))
        self.seen.setdefault(self.current_epoch, {}).update(images)
        return self.weight * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transforms", ["augment", "mosaic"])
def test_lightning_sees_the_same_epochs_also_when_resumed(mvtec_root: Path, tmp_path: Path, transforms: str) -> None:
    expected = epochs(mvtec_root, 3, transforms)
    assert not all(same(expected[1], expected[2]))
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "default_root_dir": tmp_path, "enable_checkpointing": False}

    def fit(max_epochs: int, ckpt_path: Path | None = None) -> dict[int, dict[str, Tensor]]:
        seed_everything(7, workers=True)
        module = Recorder()
        trainer = Trainer(max_epochs=max_epochs, **quiet)
        trainer.fit(module, mvtec(mvtec_root, transforms=transforms, batch_size=2), ckpt_path=ckpt_path)
        if ckpt_path is None:
            trainer.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return module.seen

    through = fit(3)
    assert [all(same(through[epoch], expected[epoch])) for epoch in range(3)] == [True] * 3
    fit(1)
    resumed = fit(3, tmp_path / "1.ckpt")
    assert sorted(resumed) == [1, 2]
    assert [all(same(resumed[epoch], expected[epoch])) for epoch in (1, 2)] == [True] * 2


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["bottle", "nut"]}, "Expected categories to be among bottle, screw, but got nut"),
        ({"categories": ["screw", "screw"]}, "categories once, but screw is there more than once"),
        ({"categories": "screw"}, r"list of names such as \[bottle\], but got 'screw'"),
        ({"categories": []}, r"list of names such as \[bottle\], but got \[\]"),
        ({"val_categories": ["nut"]}, "val_categories to be among bottle, screw, but got nut"),
        ({"val_categories": ["screw", "bottle"]}, "leave a category to train on, but they are all of bottle, screw"),
        ({"val_categories": ["screw"], "categories": ["bottle"]}, "val_categories to be among bottle, but got screw"),
        ({"split": "tset"}, "split to be one of test, train, but got 'tset'"),
        ({"transforms": "strong"}, "one of default, augment, mosaic, but got 'strong'"),
        ({"eval_size": "full"}, "eval_size to be model, native or a number of pixels up to 8192, but got 'full'"),
        ({"eval_size": 0}, "eval_size .* got 0"),
        ({"eval_size": 1.5}, r"eval_size .* got 1\.5"),
        ({"batch_size": 0}, "batch_size to be 1 or more, but got 0"),
        ({"num_workers": -1}, "num_workers to be 0 or more, or null, but got -1"),
        ({"image_size": None}, "image_size to be 1 or more, but got None"),
        ({"image_size": 0}, "image_size to be 1 or more, but got 0"),
    ],
)
def test_wrong_options(mvtec_root: Path, options: dict[str, Any], message: str) -> None:
    data = mvtec(mvtec_root, **options)
    with pytest.raises(UserError, match=message) as error:
        data.setup("fit")
    assert "\n" not in str(error.value)


def test_records_are_checked_before_images_are_opened(mvtec_root: Path) -> None:
    for path in mvtec_root.rglob("*.png"):
        path.write_bytes(b"")
    assert len(mvtec(mvtec_root).records) == 10
    with pytest.raises(UserError, match="val_categories"):
        _ = mvtec(mvtec_root, val_categories=["nut"]).records


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_unreadable_file_gives_one_line(mvtec_root: Path, workers: int, kind: str) -> None:
    name = {"image": "test/scratch/001.png", "mask": "ground_truth/scratch/001_mask.png"}[kind]
    path = mvtec_root / "bottle" / name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        batches(mvtec(mvtec_root, num_workers=workers).test_dataloader())
    assert str(error.value).startswith(f"Expected a readable image, but could not decode {path} (")
    assert "\n" not in str(error.value)


def test_mask_of_another_size(mvtec_root: Path) -> None:
    save_mask(mvtec_root / "bottle/ground_truth/scratch/001_mask.png", columns=2, size=(30, 20))
    with pytest.raises(UserError, match=r"001_mask\.png has 20x30 and .*scratch/001\.png has 30x20 pixels"):
        batches(mvtec(mvtec_root).test_dataloader())


def test_masks_given_for_normal_images(mvtec_root: Path) -> None:
    path = mvtec_root / "bottle/ground_truth/good/001_mask.png"
    save_mask(path, columns=0)
    assert batches(mvtec(mvtec_root).test_dataloader())[0]["mask"][2].sum() == 0
    save_mask(path, columns=2)
    with pytest.raises(UserError, match=r"empty mask for the normal image .*good/001\.png, .* marks 40 pixels"):
        batches(mvtec(mvtec_root).test_dataloader())


# Fingerprint


def test_fingerprint(mvtec_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    data = mvtec(mvtec_root)
    found = data.fingerprint()
    used = [*mvtec_root.glob("*/test/*/*.png"), *mvtec_root.glob("*/ground_truth/*/*.png")]
    assert (found["root"], found["name"], found["split"]) == (str(mvtec_root), "mvtec", "test")
    assert found["files"] == len(used) == 16
    assert found["bytes"] == sum(len(path.read_bytes()) for path in used)
    assert found["categories"]["screw"] == {
        "images": 5,
        "normal": 2,
        "anomalous": 3,
        "bytes": sum(len(path.read_bytes()) for path in used if "screw" in path.parts),
    }


def test_fingerprint_hash_follows_names_and_sizes(mvtec_root: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        return str(mvtec(root, categories=["screw"]).fingerprint()["sha256"])

    first = fingerprint(mvtec_root)
    shutil.copytree(mvtec_root, tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == first
    image = tmp_path / "elsewhere/screw/test/good/001.png"
    image.write_bytes(image.read_bytes() + b"0")
    longer = fingerprint(tmp_path / "elsewhere")
    image.rename(image.with_name("002.png"))
    assert len({first, longer, fingerprint(tmp_path / "elsewhere")}) == 3


def test_a_new_data_set_is_two_methods(photos: Path) -> None:
    from datamodules.records import Record, list_images

    class Cups(AnomalyDataModule):
        name, title, layout, source = "cups", "Cups", "<category>/*.jpg", "Nowhere"

        def find_categories(self) -> list[str]:
            return ["bad", "ok"]

        def read_category(self, category: str) -> list[Record]:
            return [Record(path, category, int(category == "bad"), None) for path in list_images(self.root / category)]

    batch = batches(Cups(photos, image_size=8, num_workers=0).test_dataloader())[0]
    assert batch["category"] == ["bad", "bad", "ok", "ok"]
    assert batch["label"].tolist() == [1, 1, 0, 0]


# Depth of images


def deep(photos: Path, **options: Any) -> Folder:
    """All four images of one category have 12 bits in 16."""
    for path in (photos / "ok").rglob("*.*"):
        path.unlink()
    for number in range(8):
        Image.fromarray(np.full(SIZE, 4095, np.uint16)).save(photos / f"ok/{number}.png")
    return Folder(photos / "ok", **{"image_size": 8, "batch_size": 1, "num_workers": 0, **options})


def test_bits_of_the_data_set_reach_the_images(photos: Path) -> None:
    for bits, level in ((12, 1.0), (16, 16 / 255), (14, 64 / 255)):
        data = deep(photos, bits=bits, mean=(0, 0, 0), std=(1, 1, 1))
        assert batches(data.test_dataloader())[0]["image"].unique().tolist() == pytest.approx([level])
    with pytest.raises(UserError, match=r"bits to be a number from 8 to 16, or null, but got 4"):
        _ = deep(photos, bits=4).records


@pytest.mark.parametrize("workers", [0, 3])
def test_dark_images_are_told_once(photos: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    data = deep(photos, num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)  # not into pytest's list
        batches(data.test_dataloader())
        batches(data.test_dataloader())
    assert capfd.readouterr().err.count("set bits=12 of the data set") == 1


def test_masks_that_are_empty_on_disk_are_told_from_those_that_vanish(mvtec_root: Path) -> None:
    folder = mvtec_root / "bottle/ground_truth/scratch"
    save_mask(folder / "000_mask.png", columns=0)
    save_mask(folder / "001_mask.png", columns=1, size=(20, 30))  # less than half of a pixel of 8
    data = mvtec(mvtec_root, image_size=8, batch_size=5, categories=["bottle"])
    (first,) = batches(data.test_dataloader())
    assert first["image_path"][3:] == ["bottle/test/scratch/000.png", "bottle/test/scratch/001.png"]
    assert first["mask"].any(dim=(1, 2)).tolist() == [True, False, False, False, False]
    assert first["mask_is_empty"] == [False, False, False, True, False]
    # Where masks and features are served, too.
    data.serve("test", {record: {"mask": mask} for record, mask in zip(data.records, first["mask"], strict=True)})
    (served,) = batches(data.test_dataloader())
    assert served["mask_is_empty"] == first["mask_is_empty"]


# Features that are there already


def test_served_samples_replace_the_files(mvtec_root: Path) -> None:
    data = mvtec(mvtec_root, val_categories=["screw"], num_workers=2)
    masks = torch.ones(16, 16, dtype=torch.uint8)
    features = {record: {"tokens": torch.full((3,), float(row))} for row, record in enumerate(data.records)}
    data.serve("test", {record: {"features": one, "mask": masks} for record, one in features.items()})
    for path in mvtec_root.glob("bottle/test/broken/*.png"):
        path.write_bytes(b"")  # what is served is not opened
    first = batches(data.test_dataloader())[0]
    assert set(first) == {"features", "mask", "mask_is_empty", "label", "category", "image_path"}
    assert first["features"]["tokens"].tolist() == [[row] * 3 for row in range(4)]
    assert first["label"].tolist() == [1, 0, 0, 1]
    assert batches(data.val_dataloader())[0]["image"].shape == (4, 3, 16, 16)  # another role, from its files


# Workers


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (6, 1, 5), (64, 1, 8), (8, 2, 3)])
def test_workers_follow_the_cores(
    mvtec_root: Path, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    data = mvtec(mvtec_root, num_workers=None)
    if processes > 1:
        data.trainer = Trainer(accelerator="cpu", devices=processes, strategy="ddp", logger=False)
    assert data.test_dataloader().num_workers == workers
    assert mvtec(mvtec_root, num_workers=3).test_dataloader().num_workers == 3
