"""Change one token of the source at a time and print the changes that the tests don't see.

`python -m experiments.mutation src/metrics/functional src/models --count 88 --seed 0`, from the repository root. All
changes are made in a temporary copy. Each of them is tested by a fork of this process, which has imported what is slow.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

COPIED = ("src", "datamodules", "conf", "tests", "pyproject.toml")  # the rest is linked
TESTS = {"src/metrics": "tests/metrics", "src/models": "tests/models"}  # of the files in a folder
IMPORTED = ("lightning", "torchmetrics", "torchvision", "open_clip", "sklearn.metrics", "scipy.ndimage", "hypothesis")
PAIRS = [
    *("< <=", "> >=", "== !=", "+ -", "* /", "// /", "** *", "& |", "<< >>", "+= -=", "*= /=", "|= &=", "^= |="),
    *("and or", "True False", "min max", "amin amax", "argmin argmax", "minimum maximum", "any all", "floor ceil"),
    *("first last", "zeros ones", '"left" "right"'),
]
OTHER = {old: new for pair in PAIRS for old, new in (pair.split(), pair.split()[::-1])}
OTHER |= {"/": "*", "*": "/", "not": "", "is": "is not"}


class Mutant(NamedTuple):
    """A change of one token; the line counts from 1, the column from 0."""

    path: Path
    line: int
    column: int
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The file's text with the change."""
        lines = source.splitlines(keepends=True)
        text = lines[self.line - 1]
        lines[self.line - 1] = text[: self.column] + self.new + text[self.column + len(self.old) :]
        return "".join(lines)


def mutants_of(path: Path) -> list[Mutant]:
    """All changes of a file that still compile; types in signatures are left alone, as they do nothing."""
    source, found = path.read_text(), []
    types = [_span(node) for node in _annotations(ast.parse(source))]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if any(start <= token.start < end for start, end in types):
            continue
        for new in _replacements(token):
            mutant = Mutant(path, *token.start, token.string, new)
            try:
                compile(mutant.apply(source), str(path), "exec")
            except SyntaxError:
                continue
            found.append(mutant)
    return found


def _replacements(token: tokenize.TokenInfo) -> list[str]:
    if token.string == "*" and token.line[token.end[1]] == ",":
        return []  # parts a signature
    if token.type != tokenize.NUMBER:
        return [OTHER[token.string]] if token.string in OTHER else []
    value = ast.literal_eval(token.string)
    return [str(value + 1), str(value - 1)] if isinstance(value, int) and value else [str(value * 2 or value + 1)]


def _annotations(tree: ast.Module) -> list[ast.expr]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.arg, ast.AnnAssign, ast.FunctionDef))]
    types = [node.returns if isinstance(node, ast.FunctionDef) else node.annotation for node in nodes]
    return [node for node in types if node is not None]


def _span(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def tests_of(path: Path) -> list[str]:
    """The files that test a source file: the one of its name first, those that start processes last."""
    folder = next(Path(tests) for sources, tests in TESTS.items() if path.is_relative_to(sources))
    files = sorted(folder.glob("test_*.py"), key=lambda file: (path.stem not in file.stem, "exchange" in file.stem))
    return [str(file) for file in files]


def exit_code(tests: Sequence[str], seconds: float) -> int | None:
    """Run tests in a fork of this process: pytest's exit code, None if they take too long."""
    child = multiprocessing.get_context("fork").Process(target=_run, args=(tests,))
    child.start()
    child.join(seconds)
    code = child.exitcode
    if code is None and child.pid:
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return code


def _run(tests: Sequence[str]) -> None:
    os.setsid()  # what the tests start ends with them
    import pytest

    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={Path.cwd().parent / 'pytest'}", *tests]))


def copy_repository(folder: Path) -> None:
    """Copy what tests import and link the rest, also what lies beside the repository."""
    for path in Path.cwd().iterdir():
        if path.name not in COPIED:
            (folder / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)


def main(sources: Sequence[Path], without: Sequence[Path], count: int, seed: int, seconds: float) -> None:
    """Try `count` changes of all that are possible, drawn at random."""
    files = sorted(file for path in sources for file in (path.rglob("*.py") if path.is_dir() else [path]))
    mutants = [mutant for file in files if file not in without for mutant in mutants_of(file)]
    drawn = sorted(random.Random(seed).sample(mutants, min(count, len(mutants))))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "repository")
        folder.mkdir()
        copy_repository(folder)
        os.chdir(folder)
        sys.path[0] = str(folder)  # `src` is the copy's
        sys.dont_write_bytecode = True  # a stale one would stand for a change of the same length and second
        for name in IMPORTED:
            importlib.import_module(name)
        assert "src" not in sys.modules
        for tests in {tuple(sorted(tests_of(mutant.path))) for mutant in drawn}:
            assert exit_code(tests, seconds) == 0, f"{tests} fail or take too long without a change"
        outcomes = Counter(_try(mutant, seconds) for mutant in drawn)
        os.chdir("/")
    print(f"tried {len(drawn)} of {len(mutants)}: {', '.join(f'{n} {name}' for name, n in outcomes.items())}")


def _try(mutant: Mutant, seconds: float) -> str:
    source = mutant.path.read_text()
    mutant.path.write_text(mutant.apply(source))
    code = exit_code(tests_of(mutant.path), seconds)
    mutant.path.write_text(source)
    outcome = {0: "survived", None: "too slow"}.get(code, "seen")
    if outcome != "seen":
        place = f"{mutant.path}:{mutant.line}:{mutant.column}"
        print(f"{outcome}: {place}: {mutant.old} -> {mutant.new or 'nothing'}", flush=True)
        print(f"    {source.splitlines()[mutant.line - 1].strip()}", flush=True)
    return outcome


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, help="files and folders to change, relative to the root")
    parser.add_argument("--without", nargs="*", type=Path, default=[], help="files to leave alone")
    parser.add_argument("--count", type=int, default=88)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="after which tests are ended")
    given = parser.parse_args()
    for source in given.sources:
        if not source.exists() or not any(source.is_relative_to(folder) for folder in TESTS):
            parser.error(f"expected a file or folder in {' or '.join(TESTS)}, but got {source}")
    main(given.sources, given.without, given.count, given.seed, given.seconds)
