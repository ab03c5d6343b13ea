"""experiments -> src -> datamodules, never back; and what may import what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("src", "datamodules", "experiments")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = ("torch", "lightning", "torchmetrics", "open_clip", "albumentations", "wandb", "sklearn", "scipy", "matplotlib")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """Every module a file imports, at any depth of its code; of `from a import b` both `a` and `a.b`."""
    own = module_name(file).split(".")
    package = own if file.name == "__init__.py" else own[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def imports_any(file: Path, *packages: str) -> bool:
    return any(name.split(".")[0] in packages for name in imports_of(file))


def files_of(module: str) -> list[Path]:
    return [file for file in FILES if f"{module_name(file)}.".startswith(f"{module}.")]


def reached_from(module: str) -> set[Path]:
    """The files of a package, and the project's own files that they import, directly or not."""
    by_name = {module_name(file): file for file in FILES}
    todo, reached = files_of(module), set[Path]()
    while todo:
        file = todo.pop()
        if file not in reached:
            reached.add(file)
            todo += [by_name[name] for name in imports_of(file) if name in by_name]
    return reached


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path) -> None:
    file = ROOT / "src" / "models" / "sdp.py"
    assert {"torch", "src.models.surgery", "src.models.surgery.surgery_similarity"} <= imports_of(file)
    assert len(files_of("src.models")) > 10
    assert ROOT / "datamodules" / "errors.py" in reached_from("src.models")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("datamodules", ("src", "experiments")),
        ("src", ("experiments", "tests")),
        ("src.models", ("lightning", "pytorch_lightning", "hydra", "omegaconf")),
        ("src.metrics", ("lightning", "pytorch_lightning", "hydra", "omegaconf", "open_clip")),
    ],
)
def test_directions(module: str, forbidden: tuple[str, ...]) -> None:
    files = files_of(module)
    assert files
    assert [str(file.relative_to(ROOT)) for file in files if imports_any(file, *forbidden)] == []


@pytest.mark.parametrize("module", ["src.models", "src.metrics"])
def test_lightning_and_hydra_are_reached_by_no_detour(module: str) -> None:
    reached = reached_from(module)
    assert not [file.name for file in reached if file.is_relative_to(ROOT / "src" / "run")]
    assert [file.name for file in reached if imports_any(file, "lightning", "pytorch_lightning", "hydra")] == []


def test_one_file_imports_open_clip() -> None:
    # A study may use it for itself, as the one that trains the demo's CLIP does.
    framework = [*files_of("src"), *files_of("datamodules")]
    importing = [str(file.relative_to(ROOT)) for file in framework if imports_any(file, "open_clip")]
    assert importing == ["src/clip/backbone.py"]


def test_the_way_to_help_imports_nothing_heavy() -> None:
    code = f"import sys, src, src.cli, datamodules; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--help"], "test_data"),
        (["+exp=sdp_visa", "--cfg", "job"], "smoothing_sigma"),
        (["seeed=3"], "error: "),
        (["+exp=sdp_mvtek"], "error: "),
        (["seed=many"], "error: "),
        (["+foo=3"], "error: unknown configuration key 'foo'"),
    ],
)
def test_what_composing_can_answer_imports_nothing_heavy(arguments: list[str], answer: str, tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', *(m for m in {HEAVY} if m in sys.modules), flush=True))\n"
        f"sys.argv = ['src/train.py', 'paths.output_dir={tmp_path}/run', *{arguments}]\n"
        "from src.train import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
