"""Files that are there whole or not at all, and never too many."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from src.features import store as store_module
from src.features.store import ArrayStore, NotKept

SIZE = 168 + 4000  # header and a thousand float32


def array(value: float = 1.0) -> Tensor:
    return torch.full((10, 100), float(value))


def filled(folder: Path, names: str, max_bytes: float = 1e9) -> tuple[ArrayStore, dict[str, Path]]:
    """A store with an array for each letter, used in their order."""
    store = ArrayStore(folder / "store", max_bytes)
    paths = {name: store.path("key", "part", 3 * name) for name in names}
    for age, (name, path) in enumerate(paths.items()):
        store.write(path, array(ord(name)))
        os.utime(path, (time.time() - 1000 + age,) * 2)
    return store, paths


def there(paths: dict[str, Path]) -> str:
    return "".join(name for name, path in paths.items() if path.exists())


@pytest.mark.parametrize(
    "wrong",
    [array(2), array()[:9], array().half(), array().int(), array().view(100, 10), torch.zeros(10, 100)],
    ids=["values", "fewer levels", "half", "integers", "shape", "zeros"],
)
def test_a_file_that_is_not_as_it_was_written_is_not_there(tmp_path: Path, wrong: Tensor) -> None:
    store, paths = filled(tmp_path, "a")
    with safe_open(paths["a"], "pt") as file:
        checksum = file.metadata()
    paths["a"].write_bytes(save({"array": wrong}))
    assert store.read(paths["a"]) is None
    paths["a"].write_bytes(save({"array": wrong}, checksum))
    assert store.read(paths["a"]) is None
    assert torch.equal(store.write(paths["a"], array()), array())


def test_a_file_in_anothers_place_is_not_there(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "ab")
    paths["b"].write_bytes(paths["a"].read_bytes())
    assert store.read(paths["b"]) is None
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = ArrayStore(tmp_path / "moved", 1e9)
    assert moved.read(moved.path("key", "part", "aaa")) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    store = ArrayStore(tmp_path / "store", 1e9)
    path = store.path("key", "part", "abcdef")
    assert path == tmp_path / "store" / "key" / "part" / "ab" / "cdef.safetensors"
    assert store.read(path) is None
    values = torch.arange(24).view(2, 3, 4).to(dtype)
    written = store.write(path, values)
    assert torch.equal(written, values)
    read = store.read(path)
    assert read is not None
    assert read.dtype == dtype
    assert torch.equal(read, values)
    assert [one.name for one in path.parent.iterdir()] == ["cdef.safetensors"]


@pytest.mark.parametrize("size", [0, 1, 8, 60, 167, 168, 169, SIZE - 1])
def test_a_file_that_is_cut_off_is_not_there(tmp_path: Path, size: int) -> None:
    store, paths = filled(tmp_path, "a")
    assert paths["a"].stat().st_size == SIZE
    os.truncate(paths["a"], size)
    assert store.read(paths["a"]) is None
    assert torch.equal(store.write(paths["a"], array(2)), array(2))


def test_changing_what_was_read_does_not_change_the_file(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "a")
    first = store.read(paths["a"])
    assert first is not None
    first.zero_()
    second = store.read(paths["a"])
    assert second is not None
    assert torch.equal(second, array(ord("a")))


def test_any_number_of_arrays_may_be_mapped_at_once(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "store", 1e9)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        paths = [store.path("key", "part", f"name{number}") for number in range(100)]
        written = [store.write(path, array(number)) for number, path in enumerate(paths)]
        read = [store.read(path) for path in paths]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for number, (one, other) in enumerate(zip(written, read, strict=True)):
        assert torch.equal(one, array(number))
        assert other is not None
        assert torch.equal(other, array(number))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_what_is_read_is_mapped_and_not_copied(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "ab")
    held = [store.read(path) for path in paths.values()]
    maps = Path("/proc/self/maps").read_text()
    assert all(str(path) in maps for path in paths.values())
    del held
    maps = Path("/proc/self/maps").read_text()
    assert not any(str(path) in maps for path in paths.values())


def test_a_file_that_can_not_be_mapped_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_maps(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    store = ArrayStore(tmp_path / "store", 1e9)
    monkeypatch.setattr("src.arrays.safe_open", no_more_maps)
    with pytest.raises(NotKept, match=r"can't be mapped.*max_map_count"):
        store.write(store.path("key", "part", "name"), array())


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "abcd", max_bytes=4.5 * SIZE)
    store.make_room(SIZE // 3, keep=[])
    assert there(paths) == "abcd"
    store.read(paths["a"])
    store.make_room(2 * SIZE, keep=[paths["c"]])
    assert there(paths) == "ac"


def test_an_array_that_is_removed_stays_readable_where_it_is_mapped(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "ab", max_bytes=2 * SIZE)
    mapped = store.read(paths["a"])
    store.make_room(2 * SIZE, keep=[])
    assert there(paths) == ""
    assert mapped is not None
    assert torch.equal(mapped, array(ord("a")))


def test_nothing_is_removed_for_what_will_not_fit_anyway(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "abc", max_bytes=3 * SIZE)
    with pytest.raises(NotKept, match=r"max_gb is 1\.2504e-05"):
        store.make_room(2 * SIZE, keep=[paths["a"], paths["b"]])
    assert there(paths) == "abc"


def test_a_disk_that_is_too_small_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        free = SIZE

    store, paths = filled(tmp_path, "abc")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: Disk)
    store.make_room(SIZE, keep=[])
    assert there(paths) == "abc"
    store.make_room(2 * SIZE, keep=[])
    assert there(paths) == "bc"
    with pytest.raises(NotKept, match="are free"):
        store.make_room(4 * SIZE, keep=[])
    assert there(paths) == "bc"


def test_half_written_files_of_killed_runs_make_room_too(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, "a", max_bytes=2 * SIZE)
    half = paths["a"].with_name(".b.npy.1234.tmp")
    half.write_bytes(bytes(SIZE))
    os.utime(half, (0, 0))
    store.make_room(SIZE, keep=[])
    assert there(paths) == "a"
    assert not half.exists()


def _write_and_check(root: str) -> bool:
    store = ArrayStore(Path(root), 1e9)
    for turn in range(200):
        path = store.path("key", "part", f"{turn % 5:03}")
        if not torch.equal(store.write(path, array(turn % 5)), array(turn % 5)):
            return False
        read = store.read(path)
        if read is None or not torch.equal(read, array(turn % 5)):
            return False
    return True


def test_two_processes_write_the_same_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_write_and_check, [str(tmp_path)] * 2) == [True, True]
    assert not list(tmp_path.rglob("*.tmp"))
