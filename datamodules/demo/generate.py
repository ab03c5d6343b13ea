"""Write the demo data set to disk in MVTec's layout, once and whole.

The finished data set appears at its place by one rename. A killed process leaves a hidden folder beside it, never half
a data set, and the next one that draws removes it. Of several processes that start together one draws, and the others
wait for it and take its result.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from PIL import Image

from datamodules.demo.render import render
from datamodules.demo.settings import DEFECTS, REPORT_SEED, SIZE, TEST_GOOD, TEST_PER_DEFECT, TRAIN_GOOD, VERSION
from datamodules.errors import UserError

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the data set looks like; it is written into its root.

    Attributes:
        version: of the generator.
        seed: of all images.
        size: side of the images in pixels.
        train_good: flawless training images per category.
        test_good: flawless test images per category.
        test_per_defect: test images of each kind of defect per category.

    >>> Recipe(seed=5).folder_name()
    'demo_v1_seed5_128px_8-20-7'
    """

    version: int = VERSION
    seed: int = REPORT_SEED
    size: int = SIZE
    train_good: int = TRAIN_GOOD
    test_good: int = TEST_GOOD
    test_per_defect: int = TEST_PER_DEFECT

    def folder_name(self) -> str:
        """A name that differs between recipes, so that a changed one is drawn elsewhere and overwrites nothing."""
        counts = f"{self.train_good}-{self.test_good}-{self.test_per_defect}"
        return f"demo_v{self.version}_seed{self.seed}_{self.size}px_{counts}"


def demo_data(parent: str | Path, recipe: Recipe | None = None) -> Path:
    """Find the demo data set of this recipe below `parent`, and draw it if it is not there.

    Args:
        parent: folder that holds demo data sets, one sub-folder a recipe.
        recipe: by default the one on which results are reported.

    Returns:
        Its root, in MVTec's layout.

    Raises:
        UserError: the folder's content was made by another recipe, the disk can't be written, or `parent` holds what is
            no demo data set.
    """
    recipe = recipe or Recipe()
    root = Path(parent) / recipe.folder_name()
    if not root.exists():
        try:
            _check_parent(root.parent)
            root.parent.mkdir(parents=True, exist_ok=True)
            _draw_alone(root, recipe)
        except (OSError, NotImplementedError) as error:  # the latter of a disk that knows no locks
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"can't write the demo data set to {root}: {reason}") from error
    _check(root, recipe)
    return root


def _check_parent(parent: Path) -> None:
    """Draw into no folder that is somebody's own. Hidden files don't count: systems leave such."""
    names = sorted(path.name for path in parent.iterdir() if path.name[0] != ".") if parent.exists() else []
    foreign = [name for name in names if not (parent / name / RECIPE_FILE).is_file()]
    if foreign:
        raise UserError(
            f"Expected root of the demo data to be a folder for it alone, but {parent} holds {foreign[0]}; name "
            "another folder, or take data@test_data=mvtec or =folder for images of your own"
        )


def _draw_alone(root: Path, recipe: Recipe) -> None:
    """Draw while no other process does, unless one has just done so; what killed ones have left goes."""
    lock = root.with_name(f".{root.name}.lock")
    with FileLock(lock):  # it ends with its process, whatever ends that
        try:
            if not root.exists():
                for left in root.parent.glob(f".{root.name}.*/"):
                    shutil.rmtree(left, ignore_errors=True)
                _draw_aside(root, recipe)
        finally:
            lock.unlink(missing_ok=True)


def _draw_aside(root: Path, recipe: Recipe) -> None:
    """Draw into a hidden folder beside `root`, then rename it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        write_images(aside, recipe)
        (aside / RECIPE_FILE).write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
        # mkdtemp makes folders that only their owner can read.
        aside.chmod(0o755)
        aside.rename(root)
    except OSError:
        # A folder that has files in it can't be replaced by a rename: another process was faster.
        if not (root / RECIPE_FILE).is_file():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check(root: Path, recipe: Recipe) -> None:
    """Compare the recipe that lies in the data set with the one that is wanted."""
    try:
        found = json.loads((root / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != asdict(recipe):
        raise UserError(f"{root} is not the demo data set {asdict(recipe)} (its {RECIPE_FILE} says {found}); delete it")


def write_images(root: Path, recipe: Recipe) -> None:
    """Write all images and masks below `root`."""
    for category, kinds in DEFECTS.items():
        for number in range(recipe.train_good):
            _write(root, recipe, "train", category, "good", number)
        for number in range(recipe.test_good):
            _write(root, recipe, "test", category, "good", number)
        for kind in kinds:
            for number in range(recipe.test_per_defect):
                _write(root, recipe, "test", category, kind, number)


def _write(root: Path, recipe: Recipe, split: str, category: str, kind: str, number: int) -> None:
    """Draw and write one image, and its mask if it has a defect."""
    photo = render(recipe.seed, split, category, kind, number, recipe.size)
    _save(Image.fromarray(photo.image), root / category / split / kind / f"{number:03d}.png")
    if kind != "good":
        mask = Image.fromarray(photo.mask).convert("L")
        _save(mask, root / category / "ground_truth" / kind / f"{number:03d}_mask.png")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lightest compression: noise hardly packs, and the strongest would take most of the time.
    image.save(path, compress_level=1)
