"""What the project itself writes is read through a schema: anything else is one line, and never a traceback."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import UserError
from src import reproduce
from src.files import read_json
from src.run import merge
from src.run.folder import RunFolder
from src.run.predictions import Prediction, columns_of, read_predictions
from src.run.results import Provenance
from src.sweeps import collect
from tests.records import CONFIG, DESCRIBED, PROVENANCE

METRICS = {"mean": {"pixel_AP": 0.5}, "categories": {"candle": {"pixel_AP": 0.5, "vanished_masks": 1}}}
TRIAL = {"number": 0, "overrides": ["seed=1"], "status": "finished", "objective": 0.5, "error": None}
SWEEP = {"command": "train", "overrides": ["seed=1"], "sweeper": {}, "objective": "pixel_AP"}
FILES = {"provenance.json": PROVENANCE, "metrics.json": METRICS, "trial.json": TRIAL, "../sweep.json": SWEEP}
WRONG = (None, True, -1, 2**70, 1.5, "x", "\ud800", [], {}, [["x"]], {"x": {"y": None}})
ABSENT = object()
TEXTS = (b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe", b"\x00", b"[" * 100_000, b'{"mean": NaN}')


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    result = copy.deepcopy(content)
    node = result
    for key in path[:-1]:
        node = node[key]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return result


def write_all(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content))


READERS: dict[str, Callable[[Path], object]] = {
    "resume": lambda run: RunFolder(run, CONFIG).describe(**DESCRIBED),
    "reproduce": lambda run: reproduce._command(reproduce.read_record(run).provenance, run / "new"),
    "merge": lambda run: merge.check_parts([merge.read_part(run)] * 2),
    "collect": lambda run: collect.collect(run.parent),
}


def one_line(read: Callable[[Path], object], run: Path) -> str:
    """What the user is told, if anything; another exception fails the test."""
    try:
        read(run)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("reader", READERS)
def test_each_value_of_a_record_may_be_wrong(reader: str, tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "0"
    write_all(run)
    cases = [
        (name, path, value)
        for name, content in FILES.items()
        for path in places(content)
        for value in (*WRONG, *([ABSENT] if path and isinstance(path[-1], str) else []))
    ]
    for name, path, value in random.Random(reader).sample(cases, 60):  # all 2500 take two minutes
        (run / name).write_text(json.dumps(changed(FILES[name], path, value)))
        one_line(READERS[reader], run)
        (run / name).write_text(json.dumps(FILES[name]))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:6]))
@pytest.mark.parametrize(
    ("reader", "name"),
    [
        ("resume", "provenance.json"),
        ("reproduce", "provenance.json"),
        ("reproduce", "metrics.json"),
        ("merge", "provenance.json"),
        ("collect", "provenance.json"),
        ("collect", "metrics.json"),
        ("collect", "trial.json"),
        ("collect", "../sweep.json"),
    ],
)
def test_a_file_that_is_something_else_is_damaged(reader: str, name: str, text: bytes, tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "0"
    write_all(run)
    (tmp_path / "sweep" / "1").mkdir()
    second = TRIAL | {"number": 1, "overrides": ["model.x=2"], "objective": 0.6}
    (tmp_path / "sweep" / "1" / "trial.json").write_text(json.dumps(second))
    (run / name).write_bytes(text)
    assert f"{Path(name).name} is damaged: " in one_line(READERS[reader], run)


def test_a_folder_in_place_of_a_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").mkdir()
    with pytest.raises(UserError, match=r"provenance\.json is damaged: .*directory"):
        reproduce.read_record(tmp_path)


def test_the_place_of_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps(changed(PROVENANCE, ("data", "test", "categories", "candle", "images"), "2")))
    with pytest.raises(UserError, match=r"damaged: data\.test\.categories\.candle\.images: .*integer"):
        read_json(path, Provenance)


def test_a_trial_of_another_folder_is_damaged(tmp_path: Path) -> None:
    write_all(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "0").rename(tmp_path / "sweep" / "1")
    with pytest.raises(UserError, match=r"1/trial\.json is damaged: it is of trial 0"):
        collect.collect(tmp_path / "sweep")


def test_a_disk_that_is_full_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "trials.csv").write_text("earlier")
    monkeypatch.setattr("pathlib.Path.write_bytes", _full)
    assert collect.main([str(tmp_path / "sweep")]) == 1
    assert capsys.readouterr().err == f"error: No space left on device: {tmp_path}/sweep/trials.csv\n"
    monkeypatch.setattr(sys, "argv", ["reproduce", str(tmp_path / "sweep" / "0")])
    with pytest.raises(SystemExit, match="1"):
        reproduce.main()
    assert capsys.readouterr().err.startswith("error: No space left on device: ")
    assert (tmp_path / "sweep" / "trials.csv").read_text() == "earlier"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


COLUMNS = columns_of(["cls_score", "map_max"])
ROW = "a.png,candle,1,0.5,0.25,,0.75"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "a,b\n",
        ",".join(COLUMNS[:-1]) + "\n",
        ",".join((*COLUMNS[:3], "x", "x", *COLUMNS[-2:])) + "\n",
        *(
            ",".join(COLUMNS) + f"\n{ROW}\n{row}\n"
            for row in (
                "a.png,candle",
                ROW + ",",
                "a.png,candle,2,0.5,0.25,,0.75",
                "a.png,candle,1.0,0.5,0.25,,0.75",
                "a.png,candle,1,,0.25,,0.75",
                "a.png,candle,1,nan,0.25,,0.75",
                "a.png,candle,1,0.5,inf,,0.75",
                "a.png,candle,1,0.5,1e999,,0.75",
                "a.png,candle,1,0.5,0.25,x,0.75",
                "a.png,candle,1,0.5,0.25,,",
                'a.png,"candle',
            )
        ),
    ],
)
def test_a_table_that_is_not_whole_is_damaged(text: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"predictions\.csv is damaged: "):
        read_predictions(path)
    path.write_text(",".join(COLUMNS) + f"\n{ROW}\n")
    assert read_predictions(path) == [Prediction("a.png", "candle", 1, {"cls_score": 0.5, "map_max": 0.25}, 0.75)]
