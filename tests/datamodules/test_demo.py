"""The demo data set: the same images for the same seed, exact masks, never half a data set, and not too easy."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from datamodules.demo import generate, objects, settings, textures
from datamodules.demo.generate import Recipe, demo_data
from datamodules.demo.render import render
from datamodules.demo.settings import DEFECTS, PROJECTION_TEST, PROJECTION_TRAIN, REPORT_SEED, SELECTION_SEED, SIZE
from datamodules.errors import UserError

TINY = Recipe(seed=5, train_good=1, test_good=1, test_per_defect=1)
ADDRESSES = [(category, kind) for category, kinds in DEFECTS.items() for kind in kinds]


def file_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_data(tmp_path_factory.mktemp("demo"), TINY)


def test_the_demo_is_broad_enough_and_split_without_overlap() -> None:
    drawn = {module: [c for c in DEFECTS if hasattr(module, c)] for module in (textures, objects)}
    assert all(len(categories) >= 5 for categories in drawn.values())
    assert len({kind for kinds in DEFECTS.values() for kind in kinds}) >= 5
    assert sorted(PROJECTION_TRAIN + PROJECTION_TEST) == sorted(DEFECTS)
    assert len({settings.REPORT_SEED, settings.SELECTION_SEED, settings.TRAINING_SEED}) == 3


def test_layout_is_mvtecs(tiny: Path) -> None:
    for category, kinds in DEFECTS.items():
        assert (tiny / category / "train" / "good" / "000.png").is_file()
        assert sorted(p.name for p in (tiny / category / "test").iterdir()) == sorted(["good", *kinds])
        assert not (tiny / category / "ground_truth" / "good").exists()
        for kind in kinds:
            image = Image.open(tiny / category / "test" / kind / "000.png")
            mask = Image.open(tiny / category / "ground_truth" / kind / "000_mask.png")
            assert (image.mode, mask.mode) == ("RGB", "L")
            assert image.size == mask.size == (SIZE, SIZE)
            assert set(np.unique(mask)) == {0, 255}


def test_same_recipe_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    assert file_bytes(demo_data(tmp_path, TINY)) == file_bytes(tiny)


def test_another_seed_gives_other_images(tiny: Path) -> None:
    other = render(6, "test", "wood", "good", 0, SIZE).image
    assert (np.asarray(Image.open(tiny / "wood" / "test" / "good" / "000.png")) != other).mean() > 0.5


@pytest.mark.parametrize(("category", "kind"), ADDRESSES)
def test_masks_are_exact_and_inside_the_object(category: str, kind: str) -> None:
    for number in range(2):
        photo = render(11, "test", category, kind, number, SIZE)
        changed = np.abs(photo.image.astype(int) - photo.flawless).max(axis=-1)
        assert photo.mask.mean() >= 0.004
        assert not (photo.mask & ~photo.region).any()
        assert changed[~photo.mask].max(initial=0) == 0
        assert (changed[photo.mask] > 0).mean() > 0.95
        assert changed[photo.mask].mean() > 12  # of 255: visible


def test_images_of_a_category_vary_in_colour() -> None:
    for category in DEFECTS:
        means = [render(11, "test", category, "good", i, SIZE).image.mean(axis=(0, 1)) for i in range(6)]
        assert np.ptp(means, axis=0).max() > 25, category


def test_an_existing_data_set_is_not_drawn_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "write_images", lambda *_: pytest.fail("drawn again"))
    assert demo_data(tiny.parent, TINY) == tiny


def test_a_changed_recipe_goes_elsewhere(tmp_path: Path) -> None:
    roots = {replace(TINY, **change).folder_name() for change in ({}, {"version": 99}, {"seed": 6}, {"test_good": 2})}
    assert len(roots) == 4


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = tmp_path / TINY.folder_name()
    root.mkdir()
    (root / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not the demo data set"):
        demo_data(tmp_path, TINY)
    assert (root / "precious.txt").read_text() == "mine"


def test_a_killed_process_leaves_no_half_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def half(root: Path, recipe: Recipe) -> None:
        (root / "wood").mkdir()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(generate, "write_images", half)
        with pytest.raises(Killed):
            demo_data(tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f".{TINY.folder_name()}.left").mkdir()  # what a kill -9 leaves is never taken for the data set
    assert (demo_data(tmp_path, TINY) / "nut" / "test").is_dir()


def test_what_a_killed_drawing_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(root: Path, recipe: Recipe) -> None:
        (root / "wood").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(generate, "write_images", killed)
        demo_data(tmp_path, TINY)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert (demo_data(tmp_path, TINY) / "nut" / "test").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [TINY.folder_name()]


def test_a_living_drawing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings: list[Path] = []

    def slow(root: Path, recipe: Recipe) -> None:
        drawings.append(root)
        time.sleep(0.3)
        (root / "wood").mkdir()

    monkeypatch.setattr(generate, "write_images", slow)
    with ThreadPoolExecutor(3) as executor:
        roots = list(executor.map(lambda _: demo_data(tmp_path, TINY), range(3)))
    assert len(drawings) == 1
    assert [(root / "wood").is_dir() for root in roots] == [True] * 3


@pytest.mark.parametrize("mine", ["photo.jpg", "sub/photo.jpg"])
def test_nothing_is_drawn_into_a_folder_of_somebodys_own(mine: str, tmp_path: Path) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(UserError, match=rf"a folder for it alone, but {tmp_path} holds {mine.split('/')[0]}"):
        demo_data(tmp_path, TINY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / mine]


def test_several_at_once_end_with_one_whole_data_set(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(2) as executor:
        roots = list(executor.map(lambda _: demo_data(tmp_path, TINY), range(2)))
    assert roots[0] == roots[1]
    assert file_bytes(roots[0]) == file_bytes(tiny)
    assert [path.name for path in tmp_path.iterdir()] == [TINY.folder_name()]
    # The loser of the race finds the place taken when it is done.
    late = tmp_path / "late"

    def overtaken(aside: Path, recipe: Recipe) -> None:
        (aside / "wood").mkdir()
        rival = late / TINY.folder_name()
        if not rival.exists():
            rival.mkdir()
            (rival / generate.RECIPE_FILE).write_bytes((tiny / generate.RECIPE_FILE).read_bytes())

    monkeypatch.setattr(generate, "write_images", overtaken)
    root = demo_data(late, TINY)
    assert not (root / "wood").exists()
    assert [path.name for path in late.iterdir()] == [TINY.folder_name()]


def test_the_recipe_is_recorded(tiny: Path) -> None:
    recorded = json.loads((tiny / generate.RECIPE_FILE).read_text())
    assert recorded["seed"] == 5
    assert recorded["version"] == settings.VERSION


def test_distance_from_the_median_colour_does_not_solve_it() -> None:
    aurocs = []
    for category, kinds in DEFECTS.items():
        scores, truth = [], []
        for kind in ("good", *kinds):
            for number in range(3):
                photo = render(REPORT_SEED, "test", category, kind, number, SIZE)
                pixels = photo.image[::2, ::2].astype(float)
                scores.append(np.linalg.norm(pixels - np.median(pixels, axis=(0, 1)), axis=-1).ravel())
                truth.append(photo.mask[::2, ::2].ravel())
        aurocs.append(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))
    assert np.mean(aurocs) < 0.75


def test_seeds_draw_different_images() -> None:
    one, other = (render(seed, "test", "coin", "good", 0, SIZE).image for seed in (REPORT_SEED, SELECTION_SEED))
    assert (one != other).mean() > 0.5
