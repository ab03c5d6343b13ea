"""Hostile and odd data through the commands, as a user meets them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden

FEW_PROMPTS = ["prompts.templates=['a photo of a {}.']", "model.representative=mean"]


@pytest.fixture
def options(golden_a: Golden) -> list[str]:
    return [*golden_backbone(golden_a), *FEW_PROMPTS]


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ("../../x", "a category to be a path below"),
        ("/tmp/x", "a category to be a path below"),
    ],
)
def test_predict_refuses_categories_that_are_no_names(
    cli: Cli, options: list[str], photos: Path, category: str, message: str
) -> None:
    line = cli.error(
        "predict", *options, f"test_data.root={photos}", f"test_data.category={category}", "save_maps=true"
    )
    assert message in line


def test_the_demo_is_not_drawn_into_a_users_folder(cli: Cli, options: list[str], photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    line = cli.error("eval", "data@test_data=demo", *options, f"test_data.root={photos}")
    assert f"a folder for it alone, but {photos} holds bad" in line
    assert sorted(photos.rglob("*")) == before


def test_copies_of_test_images_leak_and_both_are_named(cli: Cli, options: list[str], golden_a: Golden) -> None:
    root = golden_a.write_mvtec(cli.folder / "mvtec")
    shutil.copytree(root / "pcb1", cli.folder / "mine")
    for number, path in enumerate(sorted((cli.folder / "mine/test/broken").iterdir())):
        path.rename(path.with_name(f"photo_{number}.png"))
    masks = cli.folder / "mine/ground_truth/broken"
    for number, path in enumerate(sorted(masks.iterdir())):
        path.rename(path.with_name(f"photo_{number}.png"))
    own = ["data@train_data=folder", f"train_data.root={cli.folder / 'mine'}", "train_data.anomalous_dir=test/broken"]
    own += ["train_data.mask_dir=ground_truth/broken", "train_data.num_workers=0"]
    line = cli.error("train", "model=sdp_plus", *options, f"test_data.root={root}", *own)
    assert f"pcb1; {root}/pcb1/test/broken/" in line
    assert f"is the training image {cli.folder}/mine/test/broken/photo_0.png" in line


@pytest.mark.slow
def test_bits_and_empty_masks_reach_the_results(cli: Cli, options: list[str], golden_a: Golden) -> None:
    root = golden_a.write_mvtec(cli.folder / "mvtec")
    images, masks = (sorted(root.glob(f"pcb1/{folder}/broken/*.png")) for folder in ("test", "ground_truth"))
    with Image.open(masks[0]) as mask:
        size = mask.size
    Image.new("L", size).save(masks[0])
    eight = np.asarray(Image.open(images[0]).convert("L"))
    data = ["eval", "+exp=sdp_mvtec", *options, f"test_data.root={root}", "test_data.categories=[pcb1]"]
    Image.fromarray(np.rint(eight / 255 * 4095).astype(np.uint16)).save(images[0])
    scores, counts = {}, {}
    for bits in ("null", "12", "16"):
        run = cli.ok(*data, f"test_data.bits={bits}", "feature_cache.enabled=true", name=bits)
        scores[bits] = run.predictions[
            [row["image_path"] for row in run.predictions].index("pcb1/test/broken/" + images[0].name)
        ]
        counts[bits] = run.metrics["categories"]["pcb1"]
    assert scores["null"] == scores["16"] != scores["12"]  # one cache, of which the key holds the bits
    assert [count["empty_masks"] for count in counts.values()] == [1, 1, 1]
    assert [count["vanished_masks"] for count in counts.values()] == [0, 0, 0]
