"""Write the demo data set to disk in MVTec's layout, once and whole.

The finished data set appears at its place by one rename. A killed process leaves a hidden folder beside it, never half
a data set; of several processes that start together the first to finish wins and the others take its result.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from datamodules.demo.protocol import DEFECTS, REPORT_SEED, SIZE, TEST_GOOD, TEST_PER_DEFECT, TRAIN_GOOD, VERSION
from datamodules.demo.render import render
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
    """Root of the demo data set of this recipe below `parent`; drawn now if it is not there.

    Args:
        parent: folder that holds demo data sets, one sub-folder a recipe.
        recipe: by default the one on which results are reported.

    Raises:
        UserError: the folder's content was made by another recipe, or the disk can't be written.
    """
    recipe = recipe or Recipe()
    root = Path(parent) / recipe.folder_name()
    if not root.exists():
        try:
            _draw_aside(root, recipe)
        except OSError as error:
            raise UserError(f"can't write the demo data set to {root}: {error.strerror or error}") from error
    _check(root, recipe)
    return root


def _draw_aside(root: Path, recipe: Recipe) -> None:
    """Draw into a hidden folder beside `root`, then rename it."""
    root.parent.mkdir(parents=True, exist_ok=True)
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
