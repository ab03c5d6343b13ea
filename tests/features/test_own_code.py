"""Code of the user's own, and edits of it, under the feature cache."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from src.identity import NoSource, identify_code
from src.models.sdp import SDP
from tests.cli import Cli, golden_backbone
from tests.features.test_cache import OFF, TRAIN, data, results  # noqa: F401 - a fixture
from tests.golden_reference import Golden

PLAIN = """
from src.models.sdp_plus import SDPPlus

class Own(SDPPlus):
    pass
"""
SCALED = """
from own_package.scale import SCALE
from src.models.sdp_plus import SDPPlus

class Own(SDPPlus):
    def features(self, images):
        features = super().features(images)
        return features | {"original": features["original"].flip(2) * SCALE}
"""
WITH_AN_OPTION = """
from src.models.sdp_plus import SDPPlus

class Own(SDPPlus):
    def __init__(self, *, shift, **options):
        super().__init__(**options)
        self.shift = shift

    def features(self, images):
        return {name: values.roll(self.shift, 2) for name, values in super().features(images).items()}
"""
SEEDED = """
import torch
from src.models.sdp_plus import SDPPlus

class Own(SDPPlus):
    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("noise", torch.randn(1, 1, 25, 1))

    def features(self, images):
        features = super().features(images)
        return features | {"original": features["original"] + self.noise}
"""
TRAINED = """
import torch
from src.models.sdp_plus import SDPPlus

class Own(SDPPlus):
    def __init__(self, **options):
        super().__init__(**options)
        self.gain = torch.nn.Parameter(torch.ones(1))

    def features(self, images):
        return {name: values * self.gain for name, values in super().features(images).items()}
"""
READER = """
from datamodules.mvtec import MVTec

class Own(MVTec):
    def dataset(self, role, records):
        dataset = super().dataset(role, records)
        decode = dataset._decode

        def flipped(record, index):
            sample = decode(record, index)
            return sample | {{"image": sample["image"].flip({dim})}}

        dataset._decode = flipped
        return dataset
"""

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files of a package `own_package` outside the checkout, as another process would find them."""
    folder = tmp_path / "elsewhere" / "own_package"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
            del sys.modules[name]

    def write(**sources: str) -> None:
        forget()
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)

    yield write
    forget()


@pytest.fixture
def options(golden_a: Golden, data: Path) -> list[str]:  # noqa: F811
    own = "model._target_=own_package.method.Own"
    return [*golden_backbone(golden_a), *TRAIN, "trainer.max_epochs=1", own, f"paths.data_dir={data}"]


def check(cli: Cli, options: list[str], *overrides: str, hits: int | None, name: str) -> None:
    """A run with the cache is one without, and finds so many of the six images."""
    plain = cli.ok("train", *options, *overrides, OFF, name=f"{name}_plain")
    cached = cli.ok("train", *options, *overrides, name=name)
    assert results(cached) == results(plain)
    served = cached.provenance["feature_cache"]
    found = None if "off" in served.get("train", served) else sum(one["hits"] for one in served.values())
    assert found == hits


@pytest.mark.slow
def test_an_edit_of_ones_own_method_shows(cli: Cli, options: list[str], write: Write) -> None:
    write(__init__="", method=PLAIN, scale="SCALE = 3")
    cli.ok("train", *options, "model._target_=src.models.sdp_plus.SDPPlus", name="project")
    write(method=SCALED)
    check(cli, options, hits=0, name="overridden")
    write(scale="SCALE = -1")
    check(cli, options, hits=0, name="edited")


@pytest.mark.slow
def test_options_of_ones_own_method_are_in_the_key(cli: Cli, options: list[str], write: Write) -> None:
    write(__init__="", method=WITH_AN_OPTION)
    for shift, hits in ((0, 0), (50, 0), (0, 6)):
        check(cli, options, f"+model.shift={shift}", hits=hits, name=f"shift{shift}{hits}")


@pytest.mark.slow
def test_what_a_seed_draws_is_in_the_key(cli: Cli, options: list[str], write: Write) -> None:
    write(__init__="", method=SEEDED)
    for seed, hits in ((1, 0), (2, 0), (1, 6)):
        check(cli, options, f"seed={seed}", hits=hits, name=f"seed{seed}{hits}")


@pytest.mark.slow
def test_features_that_are_trained_after_all_are_not_kept(cli: Cli, options: list[str], write: Write) -> None:
    write(__init__="", method=TRAINED)
    check(cli, options, hits=None, name="trained")


@pytest.mark.slow
def test_a_data_set_of_ones_own_reads_its_images_as_it_likes(cli: Cli, options: list[str], write: Write) -> None:
    own = "train_data._target_=own_package.reader.Own"
    project = "model._target_=src.models.sdp_plus.SDPPlus"
    write(__init__="", reader=READER.format(dim=1))
    cli.ok("train", *options, project, name="project")
    check(cli, options, project, own, hits=3, name="own")  # the test images, which the project's class reads
    write(reader=READER.format(dim=2))
    check(cli, options, project, own, hits=3, name="edited")


def test_a_class_without_a_source_switches_the_cache_off(
    cli: Cli, options: list[str], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(__init__="", method="exec('''" + SCALED + "''')", scale="SCALE = 3")
    run = cli.ok("train", *options)
    assert "feature cache off: the source of own_package.method.Own can't be read" in run.out
    assert not (cli.folder / "cache" / "features").exists()


# The description of code


def own_class() -> type:
    return importlib.import_module("own_package.method").Own  # type: ignore[no-any-return]


def test_any_file_of_a_package_counts_and_others_do_not(write: Write, tmp_path: Path) -> None:
    write(__init__="", method=PLAIN)
    before = identify_code([own_class()])
    assert set(before["sources"]) == {"own_package", "src"}
    write()
    assert identify_code([own_class()]) == before
    (tmp_path / "elsewhere" / "own_package" / "notes.txt").write_text("no code")
    write()
    assert identify_code([own_class()]) == before
    write(anything="")
    after = identify_code([own_class()])
    assert after["sources"]["own_package"] != before["sources"]["own_package"]
    assert after["sources"]["src"] == before["sources"]["src"]


def test_a_namespace_package_and_a_single_module(write: Write, tmp_path: Path) -> None:
    write(method=PLAIN)
    before = identify_code([own_class()])
    write(helper="")
    assert identify_code([own_class()]) != before
    (tmp_path / "elsewhere" / "own_module.py").write_text(PLAIN)
    try:
        described = identify_code([importlib.import_module("own_module").Own])
    finally:
        del sys.modules["own_module"]
    assert set(described["sources"]) == {"own_module", "src"}


def test_a_process_goes_on_with_the_code_that_it_has_loaded(write: Write, tmp_path: Path) -> None:
    write(__init__="", method=PLAIN)
    loaded = own_class()
    before = identify_code([loaded])
    (tmp_path / "elsewhere" / "own_package" / "method.py").write_text(PLAIN + "# edited\n")
    assert identify_code([loaded]) == before
    write()
    assert identify_code([own_class()]) != before


def test_two_classes_of_one_package_are_two(write: Write) -> None:
    write(__init__="", method=PLAIN + PLAIN.replace("Own", "Other"))
    module = sys.modules[own_class().__module__]
    assert identify_code([module.Own]) != identify_code([module.Other])


@pytest.mark.parametrize(
    "made", [type("Made", (SDP,), {}), type(torch.jit.script(nn.Identity())), type(torch.fx.symbolic_trace(nn.ReLU()))]
)
def test_what_is_made_at_run_time_has_no_source(made: type) -> None:
    with pytest.raises(NoSource, match="be read, so a change"):
        identify_code([made])
