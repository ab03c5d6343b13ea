"""Values that are taken as they are typed."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st

from src.overrides import CONF, literal, typed
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
    assert typed(override) == f"source={text}"


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


@pytest.mark.parametrize("flags", ["-m", "--multirun", "--m", "--multi", "-mr", "-hm", "-mp=model"])
def test_a_sweep_keeps_hydras_grammar(flags: str) -> None:
    assert get_args_parser().parse_args([flags]).multirun
    assert literal(["source=a,b", flags]) == ["source=a,b", flags]


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("mode", ["MULTIRUN", "'MULTIRUN'", '"MULTIRUN"', "RunMode.MULTIRUN", "2", "RUN", "1"])
def test_a_mode_decides_whether_it_is_a_sweep(plus: str, mode: str) -> None:
    override = f"{plus}hydra.mode={mode}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        is_sweep = compose("eval", [override], return_hydra_config=True).hydra.mode == RunMode.MULTIRUN
    assert (literal(["source=a,b", override])[0] == "source=a,b") == is_sweep


@pytest.mark.parametrize("flags", ["--help", "-r", "-c=job", "--config-name=m", "-cn=m", "-cd=m", "--info", "-p=m"])
def test_other_flags_make_no_sweep(flags: str) -> None:
    assert not get_args_parser().parse_args([flags]).multirun
    assert literal([flags, "source=a,b"]) == [flags, "source='a,b'"]


@pytest.mark.parametrize(
    "other",
    [
        "seed=1,2",
        "model.x=[1]",
        "+exp=sdp_visa",
        "~ckpt_path",
        "--config-dir=a,b",
        "hydra.job_logging.root={level: INFO}",
    ],
)
def test_other_arguments_are_left_alone(other: str) -> None:
    assert literal([other]) == [other]


def test_an_interpolation_is_still_resolved(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 1)
    options = [*golden_backbone(golden_a), f"paths.data_dir={tmp_path}", "source=${paths.data_dir}/photos"]
    assert len(cli.ok("predict", *options).predictions) == 1


@pytest.mark.parametrize("text", ["${oc.env:NO_SUCH,'a b'}", '${oc.env:NO_SUCH,"a b"}', "${oc.env:NO_SUCH,a b}"])
def test_an_interpolation_may_have_quotes(text: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("predict", literal([f"category={text}"]), return_hydra_config=True)
    assert config.category == "a b"
    assert "a b" in config.hydra.overrides.task[0]  # OmegaConf looks it up there, too


@pytest.mark.parametrize("name", ["a b", "it's", 'a "b"'])
def test_an_interpolation_may_bring_quotes(
    name: str, cli: Cli, golden_a: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PART", name)
    options = [*golden_backbone(golden_a), f"source={draw(tmp_path / 'photos', 1)}", "category=${oc.env:PART}"]
    assert [row["category"] for row in cli.ok("predict", *options).predictions] == [name]


def test_a_name_for_wandb_has_no_added_quotes(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    options = [*golden_backbone(golden_a), f"source={draw(tmp_path / 'photos', 1)}", "category=nut, [5 mm]"]
    assert "category=nut, [5 mm]" in cli.ok("predict", *options).provenance["identity"]["name"]


@pytest.mark.slow
def test_the_command_of_a_trial_can_be_typed(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    photos = draw(tmp_path / "a, [b]", 2)
    options = [*golden_backbone(golden_a), f"source='{photos}'", "category='nut, 5 mm',bolt"]
    sweep = cli.ok("predict", "-m", *options, name="sweep").folder
    command = json.loads((sweep / "0" / "provenance.json").read_text())["command"]
    typed_again = [one for one in shlex.split(command)[3:] if not one.startswith("paths.output_dir=")]
    alone = cli.ok("predict", *typed_again, name="alone")
    assert (alone.folder / "predictions.csv").read_bytes() == (sweep / "0" / "predictions.csv").read_bytes()
    assert {row["category"] for row in alone.predictions} == {"nut, 5 mm"}


@pytest.mark.slow
def test_a_trial_of_several_processes_has_what_the_sweep_gives_it(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    photos = draw(tmp_path / "a, [b]", 3)
    sweep = tmp_path / 'the "odd" one\\'
    options = [*golden_backbone(golden_a), f"source='{photos}'", "category='nut, 5 mm',bolt", "test_data.batch_size=1"]
    more = ["trainer.devices=2", "+trainer.strategy=ddp", f"paths.cache_dir={tmp_path / 'cache'}"]
    [target] = literal([f"paths.output_dir={sweep}"])
    command = [sys.executable, "-m", "src.predict", "-m", *options, *more, target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, category in enumerate(("nut, 5 mm", "bolt")):
        with (sweep / str(number) / "predictions.csv").open(newline="") as file:
            assert [row["category"] for row in csv.DictReader(file)] == [category] * 3


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
    draw(tmp_path / ODD / "photos" / "good", 3)
    draw(tmp_path / ODD / "photos" / "bad", 2)
    weights = golden_a.write_reference_checkpoint(tmp_path / ODD / f"{ODD}.pth")
    options = [
        *golden_backbone(golden_a),
        "model=sdp_plus",
        f"ckpt_path={weights}",
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
    provenance = json.loads((folders[1] / "provenance.json").read_text())
    assert provenance["device"]["processes"] == 2
    assert provenance["config"]["ckpt_path"] == str(weights)


def test_a_hint_shows_what_to_type(cli: Cli) -> None:
    assert "+callbacks.mine.root=a,b" in cli.error("eval", "callbacks.mine.root=a,b")
