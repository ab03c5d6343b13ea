"""Values that are taken as they are typed."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from src.overrides import CONF, literal
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden
from tests.test_own_images import draw

ODD = "a, [b] = {c} 'd' \"e\" (f) größe 螺丝 100% #1 ~x"
LETTERS = st.characters(exclude_characters="\0\n\r", exclude_categories=("Cs", "Cc"))


@settings(max_examples=300, deadline=None)
@given(st.text(LETTERS | st.sampled_from("\\'\",=[]{}()~#% "), min_size=1).filter(lambda text: "${" not in text))
def test_any_text_comes_back_from_hydra(text: str) -> None:
    [override] = literal([f"source={text}"])
    assert OverridesParser.create().parse_override(override).value() == (None if text == "null" else text)


@pytest.mark.parametrize("text", [ODD, "a\\", "\\'", "'quoted'", "7", "0.5", "true", "[a]"])
def test_text_reaches_the_configuration(text: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("predict", literal([f"category={text}", f"test_data.root={text}"]))
    assert (config.category, config.test_data.root) == (text, text)


@pytest.mark.parametrize(
    "key", ["source", "category", "threshold", "ckpt_path", "test_data.root", "+test_data.category"]
)
def test_these_keys_are_taken_as_typed(key: str) -> None:
    assert literal([f"{key}=a,b"]) == [f"{key}='a,b'"]
    assert literal([f"{key}=null"]) == [f"{key}=null"]
    for sweep in ("-m", "--multirun", "hydra.mode=MULTIRUN"):
        assert literal([f"{key}=a,b", sweep])[0] == f"{key}=a,b"


@pytest.mark.parametrize("other", ["seed=1,2", "model.x=[1]", "+exp=sdp_visa", "~ckpt_path", "--config-dir=a,b"])
def test_other_arguments_are_left_alone(other: str) -> None:
    assert literal([other]) == [other]


def test_an_interpolation_is_still_resolved(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 1)
    options = [*golden_backbone(golden_a), f"paths.data_dir={tmp_path}", "source=${paths.data_dir}/photos"]
    assert len(cli.ok("predict", *options).predictions) == 1


def test_odd_names_from_end_to_end(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    draw(tmp_path / ODD / "photos", 2)
    options = [*golden_backbone(golden_a), f"source={tmp_path / ODD / 'photos'}", f"category={ODD}", "save_maps=true"]
    done = cli.ok("predict", *options, f"paths.output_dir={tmp_path / ODD / 'run'}", name=f"{ODD}/run")
    assert [row["category"] for row in done.predictions] == [ODD] * 2
    assert all((done.folder / row["map"]).is_file() for row in done.predictions)
    assert done.provenance["config"]["category"] == ODD
    assert f"category={ODD}".replace("'", "'\"'\"'") in done.provenance["command"]  # as a shell takes it
    assert f"category={ODD}" in sys.argv  # as Lightning's further processes get it


@pytest.mark.slow
def test_odd_names_under_two_processes(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    weights = tmp_path / ODD / "clip.safetensors"
    draw(tmp_path / ODD / "photos" / "good", 3)
    draw(tmp_path / ODD / "photos" / "bad", 2)
    shutil.copy(golden_a.weights_path, weights)
    options = [
        *golden_backbone(golden_a),
        "data@test_data=folder",
        f"test_data.root={tmp_path / ODD / 'photos'}",
        f"test_data.category={ODD}",
        "test_data.normal_dir=good",
        "test_data.anomalous_dir=bad",
        "test_data.batch_size=2",
        f"paths.cache_dir={tmp_path / ODD / 'cache'}",
    ]
    folders = []
    for devices in (1, 2):
        folders.append(tmp_path / ODD / str(devices))
        command = [sys.executable, "-m", "src.eval", *options, f"paths.output_dir={folders[-1]}"]
        more = [f"trainer.devices={devices}", *(["+trainer.strategy=ddp"] if devices > 1 else [])]
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (folders[0] / "metrics.json").read_bytes() == (folders[1] / "metrics.json").read_bytes()
    with (folders[1] / "predictions.csv").open(newline="") as file:
        assert {row["category"] for row in csv.DictReader(file)} == {ODD}
