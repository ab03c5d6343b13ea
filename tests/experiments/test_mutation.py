"""Which changes of one token are tried, and which tests see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.mutation import __main__ as mutation

SOURCE = '''def clamp(x: int | None, *, low: float = 0.5) -> int | None:
    """A word and 1 number."""
    return max(x, 0) if x is not None and low < 2 else None
'''


def test_changes_are_of_operators_numbers_and_names_but_not_of_types_or_texts(tmp_path: Path) -> None:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    mutants = mutation.mutants_of(path)
    changes = [(mutant.line, mutant.old, mutant.new) for mutant in mutants]
    assert changes == [
        (1, "0.5", "1.0"),
        *[(3, old, new) for old, new in [("max", "min"), ("0", "1"), ("not", ""), ("and", "or"), ("<", "<=")]],
        *[(3, "2", "3"), (3, "2", "1")],
    ]
    (line,) = (mutant.apply(SOURCE).splitlines()[2] for mutant in mutants if mutant.old == "max")
    assert line == "    return min(x, 0) if x is not None and low < 2 else None"
    assert all(mutant.apply(SOURCE) != SOURCE for mutant in mutants)


def test_a_column_counts_characters() -> None:
    assert mutation.Mutant(Path("x"), 1, 10, "-", "+").apply('x = "ä·é" - 1') == 'x = "ä·é" + 1'


def test_the_file_of_the_same_name_is_tested_first_and_processes_last() -> None:
    files = mutation.tests_of(Path("src/metrics/functional/histogram.py"))
    assert files[0].startswith("tests/metrics/test_histogram")
    assert files[-1] == "tests/metrics/test_exchange.py"
    assert set(files) == {str(file) for file in Path("tests/metrics").glob("test_*.py")}


@pytest.mark.slow
@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("assert False", 1), ("import time; time.sleep(99)", None)])
def test_tests_run_in_a_fork_that_ends(tmp_path: Path, body: str, code: int | None) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    assert mutation.exit_code([str(tmp_path / "test_it.py")], seconds=3 if code is None else 60) == code
