"""Small data sets, made by hand in the published layouts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datamodules.helpers import VISA_HEADER, save_image, save_mask


@pytest.fixture
def mvtec_root(tmp_path: Path) -> Path:
    """screw and bottle, each 2 good, 1 broken (000) and 2 scratched (000, 001) test images, 1 train image."""
    root = tmp_path / "mvtec"
    for seed, category in enumerate(("screw", "bottle")):
        folder = root / category
        save_image(folder / "train/good/000.png", seed)
        for defect, names in {"good": ("000", "001"), "broken": ("000",), "scratch": ("000", "001")}.items():
            for number, name in enumerate(names):
                save_image(folder / f"test/{defect}/{name}.png", 10 * seed + number)
                if defect != "good":
                    save_mask(folder / f"ground_truth/{defect}/{name}_mask.png", columns=4 + number)
    return root


@pytest.fixture
def visa_root(tmp_path: Path) -> Path:
    """pcb1 and candle, each 2 normal and 2 anomalous test images (in descending order) and 1 train image."""
    root = tmp_path / "visa"
    rows = [VISA_HEADER]
    for category in ("pcb1", "candle"):
        data = f"{category}/Data"
        for name in ("001", "000"):
            save_image(root / f"{data}/Images/Anomaly/{name}.JPG", int(name))
            save_mask(root / f"{data}/Masks/Anomaly/{name}.png", columns=5, value=2)
            rows.append(f"{category},test,anomaly,{data}/Images/Anomaly/{name}.JPG,{data}/Masks/Anomaly/{name}.png")
        for name, split in (("0003", "test"), ("0002", "test"), ("0001", "train")):
            save_image(root / f"{data}/Images/Normal/{name}.JPG", int(name))
            rows.append(f"{category},{split},normal,{data}/Images/Normal/{name}.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with ok/a.jpg, ok/sub/b.PNG, bad/a.jpg, bad/sub/b.bmp, and masks gt/a.png, gt/sub/b_mask.png."""
    root = tmp_path / "photos"
    for number, name in enumerate(("ok/a.jpg", "ok/sub/b.PNG", "bad/a.jpg", "bad/sub/b.bmp")):
        save_image(root / name, number)
    save_mask(root / "gt/a.png", columns=3)
    save_mask(root / "gt/sub/b_mask.png", columns=6)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / "._a.jpg.png")
    (root / "notes.txt").write_text("no image")
    return root
