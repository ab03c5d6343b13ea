"""conf/data/*.yaml against the classes that they name; and what an import costs."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.base import AnomalyDataModule

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "conf/data").glob("*.yaml") if file.stem != "base")
CHANGED = {"demo_unseen": ["categories"], "folder": ["category"]}
# These follow from the backbone and from the training, not from the data set.
NOT_IN_FILES = {"mean", "std", "val_categories"}


def composed(*overrides: str) -> DictConfig:
    """The node `test_data` of a training."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides)).test_data


@pytest.mark.parametrize("name", NAMES)
def test_a_file_makes_its_class(name: str, tmp_path: Path) -> None:
    node = composed(f"data@test_data={name}", f"test_data.root={tmp_path}", "test_data.image_size=32")
    data = instantiate(node)
    assert isinstance(data, AnomalyDataModule)
    assert data.root == tmp_path
    # The file shows the defaults of the class, so that both say the same.
    plain = get_class(node._target_)(tmp_path)
    for key in map(str, node):
        if key not in ("_target_", "root", "image_size", *CHANGED.get(name, ())):
            assert getattr(data, key) == getattr(plain, key), key


def test_the_base_shows_every_option() -> None:
    options = set(inspect.signature(AnomalyDataModule.__init__).parameters) - {"self"}
    assert set(OmegaConf.load(ROOT / "conf/data/base.yaml")) == options - NOT_IN_FILES


@pytest.mark.parametrize("base", ["base", "/data/base@_here_"])
def test_a_file_of_the_users_takes_every_key_of_the_base(base: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    own = tmp_path / "data/own.yaml"
    own.write_text(f"defaults: [{base}, _self_]\n_target_: datamodules.folder.Folder\nroot: {tmp_path}\n")
    for key, value in {"batch_size": 4, "num_workers": 0, "categories": ["a"], "bits": 12}.items():
        override = f"test_data.{key}={value}".replace("'", "")
        node = composed(f"hydra.searchpath=[file://{tmp_path}]", "data@test_data=own", override)
        assert node[key] == value
        assert getattr(instantiate(node, image_size=32), key) == value


def output_of(code: str, path: Path = ROOT) -> str:
    """Of a fresh interpreter that finds modules in ``path`` first."""
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = "import sys, datamodules.errors; print([m for m in ('torch', 'lightning', 'PIL') if m in sys.modules])"
    assert output_of(code) == "[]"


@pytest.mark.slow
def test_albumentations_is_told_not_to_look_for_updates(tmp_path: Path) -> None:
    # A stand-in for albumentations, because importing the real one once more takes long.
    (tmp_path / "albumentations.py").write_text(
        "import os; print(os.environ.get('NO_ALBUMENTATIONS_UPDATE')); raise SystemExit"
    )
    code = (
        "from datamodules.transforms import Transform; Transform({!r}, 8, 8, (0, 0, 0), (1, 1, 1)); print('no import')"
    )
    assert output_of(code.format("augment"), tmp_path) == "1"
    assert output_of(code.format("default"), tmp_path) == "no import"
