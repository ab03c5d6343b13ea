"""conf/data/*.yaml against the classes that they name; and what an import costs."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from datamodules.base import AnomalyDataModule

ROOT = Path(__file__).parents[2]
# One that changes another names no class.
FILES = [file for file in sorted((ROOT / "conf/data").glob("*.yaml")) if "_target_" in OmegaConf.load(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_instantiates_with_its_class_defaults(file: Path, tmp_path: Path) -> None:
    config = OmegaConf.create({"paths": {"data_dir": str(tmp_path)}, "data": OmegaConf.load(file)})
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = str(tmp_path / file.stem)
    data = instantiate(config.data)
    assert isinstance(data, AnomalyDataModule)
    assert data.root == tmp_path / file.stem
    assert data.name == file.stem
    # The file shows the defaults of the class, so that both say the same.
    plain = get_class(config.data._target_)(data.root)
    for key in config.data:
        if key not in ("_target_", "category"):
            assert getattr(data, key) == getattr(plain, key), key


@pytest.mark.parametrize("name", ["mvtec", "visa"])
def test_shows_every_option_that_belongs_to_the_data_set(name: str) -> None:
    options = set(inspect.signature(AnomalyDataModule.__init__).parameters) - {"self"}
    # These follow from the backbone and from the training, not from the data set.
    options -= {"mean", "std", "val_categories"}
    assert set(OmegaConf.load(ROOT / f"conf/data/{name}.yaml")) - {"_target_"} == options


def output_of(code: str, path: Path = ROOT) -> str:
    """Of a fresh interpreter that finds modules in ``path`` first."""
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = "import sys, datamodules.errors; print([m for m in ('torch', 'lightning', 'PIL') if m in sys.modules])"
    assert output_of(code) == "[]"


def test_albumentations_is_told_not_to_look_for_updates(tmp_path: Path) -> None:
    # A stand-in for albumentations, because importing the real one once more takes seconds.
    (tmp_path / "albumentations.py").write_text(
        "import os; print(os.environ.get('NO_ALBUMENTATIONS_UPDATE')); raise SystemExit"
    )
    assert output_of("import datamodules.transforms", tmp_path) == "1"
