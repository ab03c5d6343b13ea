"""What is kept of each image: written by several processes, read as one, and ranked."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import UserError
from src.report.cases import Case, Cases, CaseWriter, Picture, Table, ranked


def case_of(number: int, category: str = "cup", image_path: str | None = None) -> Case:
    path = image_path or f"{category}/test/bad/{number}.png"
    return Case(category, path, number % 2, number / 10, number / 100, 0.25, -1.0, float(number))


def picture_of(number: int) -> Picture:
    return Picture(None if number % 3 else b"jpeg%d" % number, b"map%d" % number, f"M{number} 0Z")


def write(path: Path, numbers: range, category: str = "cup") -> Path:
    writer = CaseWriter(path, path.parent)
    for number in numbers:
        writer.add([(case_of(number, category), picture_of(number))])
    writer.close()
    return path


def test_several_files_are_read_as_one_in_their_order(tmp_path: Path) -> None:
    files = [write(tmp_path / "0", range(3)), write(tmp_path / "1", range(0)), write(tmp_path / "2", range(3, 7), "b")]
    with Cases(files) as cases:
        assert len(cases) == 7
        assert cases.categories == ["cup", "b"]
        assert [cases.case(i) for i in range(7)] == [case_of(i, "cup" if i < 3 else "b") for i in range(7)]
        assert [cases.picture(i) for i in range(7)] == [picture_of(i) for i in range(7)]
        table = cases.table("b")
        assert table.ids.tolist() == [3, 4, 5, 6]
        assert table.single_score.tolist() == [0.3, 0.4, 0.5, 0.6]
        assert list(cases.folders("cup")) == [(0, "bad"), (1, "bad"), (0, "bad")]


def test_what_a_process_has_added_another_one_reads_before_it_closes(tmp_path: Path) -> None:
    writer = CaseWriter(tmp_path / "cases", tmp_path)
    writer.add([(case_of(0), picture_of(0))])
    with Cases([tmp_path / "cases"]) as cases:
        assert cases.case(0) == case_of(0)
    writer.close()


def test_what_is_not_known_comes_back_as_such(tmp_path: Path) -> None:
    writer = CaseWriter(tmp_path / "cases", tmp_path)
    writer.add([(Case("cup", "a.png", None, 0.5, None, None, 0.0, 1.0), Picture(None, b"", ""))])
    writer.close()
    with Cases([tmp_path / "cases"]) as cases:
        assert cases.case(0).label is None
        table = cases.table("cup")
        assert np.isnan([table.label[0], table.pixel_ap[0], table.mask_share[0]]).all()


@pytest.mark.parametrize("name", ['it\'s "x" <b> 🔩?#%', "caf\udce9", "a\nb"])
def test_any_name_comes_back(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name.replace("/", "")
    writer = CaseWriter(folder / "cases?#%", folder)
    writer.add([(case_of(0, name, f"{name}/x.png"), picture_of(0))])
    writer.close()
    with Cases([folder / "cases?#%"]) as cases:
        assert cases.categories == [name]
        assert cases.case(0).image_path == f"{name}/x.png"
        assert cases.image_file(0) == folder / f"{name}/x.png"


@pytest.mark.parametrize("content", [b"", b"not a database", None])
def test_a_damaged_file_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "cases"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        Cases([path])


def read_all(path: Path) -> list[Case]:
    with Cases([path]) as cases:
        return [cases.case(number) for number in range(len(cases))]


def test_a_file_that_was_cut_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "cases", range(2000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_all(path)


@pytest.fixture
def small_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_with_the_files_name(small_disk: None, tmp_path: Path) -> None:
    writer = CaseWriter(tmp_path / "cases", tmp_path)
    with pytest.raises(OSError, match="cases"):
        writer.add([(case_of(number), Picture(bytes(4096), b"", "")) for number in range(100)])
    writer.close()


def test_room_is_left_for_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer = CaseWriter(tmp_path / "cases", tmp_path)
    writer.add([(case_of(0), picture_of(0))])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(OSError, match="has less than 32 MB left"):
        writer.add([(case_of(1), picture_of(1))])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=0, free=0))  # it does not say
    writer.add([(case_of(2), picture_of(2))])
    writer.close()


@pytest.mark.parametrize("threshold", [0.5, None])
def test_rankings_are_those_of_sorting(threshold: float | None) -> None:
    generator = np.random.default_rng(0)
    label = generator.choice([0.0, 1.0, np.nan], 60)
    score, pixel_ap = generator.random(60).round(2), np.where(label == 1, generator.random(60), np.nan)
    none = np.full(60, np.nan)
    found = ranked(Table(np.arange(60) + 100, label, score, pixel_ap, none, none, none), threshold, count=5)

    images = [(score[i], label[i], pixel_ap[i], i + 100) for i in range(60)]
    low, high = (threshold, threshold) if threshold is not None else (2.0, -1.0)
    misses = sorted((s, i) for s, is_anomalous, _, i in images if is_anomalous == 1 and s < low)
    alarms = sorted((-s, i) for s, is_anomalous, _, i in images if is_anomalous == 0 and s >= high)
    hits = sorted((-s, i) for s, is_anomalous, _, i in images if is_anomalous == 1 and s >= high)
    maps = sorted((ap, i) for _, _, ap, i in images if not np.isnan(ap))
    expected = {"worst miss": misses, "worst false alarm": alarms, "best hit": hits, "worst map": maps}
    for name, cases in expected.items():
        assert found[name] == [i for _, i in cases[:5]], name
    assert found["best map"] == [i for _, i in maps[::-1][:5]]
    assert ("closest to the threshold" in found) == (threshold is not None)
    if threshold is not None:
        nearest = sorted((abs(s - threshold), i) for s, _, _, i in images)
        assert found["closest to the threshold"] == [i for _, i in nearest[:5]]
    unknown = sorted((-s, i) for s, is_anomalous, _, i in images if np.isnan(is_anomalous))
    assert found["highest score"] == [i for _, i in unknown[:5]]
