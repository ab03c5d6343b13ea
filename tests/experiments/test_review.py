"""What a reader would see in W&B: the workspace and the report as W&B gets them, and the search it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

from experiments.review import workspace
from src.cli import CONF
from src.config import validate
from src.files import write_json
from src.metric_names import METRIC_NAMES
from src.run import trackers
from src.run.results import METRICS_FILE, PROVENANCE_FILE
from tests.golden_reference import ROOT
from tests.records import PROVENANCE

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # W&B's own use

SWEEP = ROOT / "experiments/review/wandb_sweep.yaml"
OPTIONS = ["entity=lab", "project=clip-ad", "categories=[coin,nut]", "metrics=[image_AP,pixel_F1Max]"]
NO_HYPHENS = "args_no_hyphens"
GROUPED = {"groupBy": "group", "groupAgg": "mean", "groupArea": "stddev"}


class Server:
    """What W&B's server is asked for by a saved workspace and a saved report, and a likely answer."""

    app_url = "https://wandb.ai"
    default_entity = "lab"

    def __init__(self, projects: tuple[str, ...] = ("clip-ad",)) -> None:
        self.views: list[Mapping[str, Any]] = []
        self.names = projects
        self._service_api = self

    def projects(self, entity: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.names]

    def execute_graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
            known = variables["projectName"] in self.names
            return {"project": {"internalId": "UHJvamVjdA=="} if known else None}
        self.views.append(variables)
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": f"view{len(self.views)}", "name": variables["name"], "displayName": variables["displayName"]}
        return {"upsertView": {"inserted": True, "view": {**view, "spec": variables["spec"], "project": project}}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(wandb, "Api", lambda: server)
    monkeypatch.setattr(trackers, "why_offline", lambda: None)
    return server


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        workspace.main(arguments)
    return int(stop.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command line is refused with."""
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def sections_of(server: Server) -> dict[str, list[dict[str, Any]]]:
    """Title -> panels of the workspace that was saved."""
    spec = json.loads(server.views[0]["spec"])
    return {part["name"]: part["panels"] for part in spec["section"]["panelBankConfig"]["sections"]}


def text_of(block: Any) -> str:
    """All text of a report's block."""
    if isinstance(block, dict):
        return str(block.get("text", "")) + "".join(text_of(child) for child in block.get("children", []))
    return ""


def shown(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the panels show, without the ids that are drawn at random and the places they lie at."""
    return [{"type": panel["viewType"], **panel["config"]} for panel in panels]


def test_a_workspace_and_a_report_are_saved_in_the_project(server: Server) -> None:
    assert run(*OPTIONS, "name=Ours") == 0
    places = [(view["entityName"], view["projectName"], view["displayName"], view["type"]) for view in server.views]
    assert places == [("lab", "clip-ad", "Ours", "project-view"), ("lab", "clip-ad", "Ours", "runs")]
    assert not any(view.get("id") for view in server.views)  # nothing that is there is changed


def test_a_metric_is_a_bar_an_experiment_with_the_deviation_over_seeds(server: Server) -> None:
    run(*OPTIONS)
    bars = shown(sections_of(server)["Metrics by experiment"])
    assert [(bar["type"], bar["metrics"]) for bar in bars] == [
        ("Bar Chart", ["test/image_AP"]),
        ("Bar Chart", ["test/pixel_F1Max"]),
    ]
    assert all(GROUPED.items() <= bar.items() for bar in bars)


def test_each_metric_has_a_bar_a_category(server: Server) -> None:
    run(*OPTIONS)
    *bars, table = shown(sections_of(server)["Categories"])
    assert [bar["metrics"] for bar in bars] == [
        ["test/coin/image_AP", "test/nut/image_AP"],
        ["test/coin/pixel_F1Max", "test/nut/pixel_F1Max"],
    ]
    assert all(GROUPED.items() <= bar.items() for bar in bars)
    assert '"test/categories"' in json.dumps(table)


def test_parallel_coordinates_lead_from_the_searched_settings_to_the_objective(server: Server) -> None:
    run(*OPTIONS)
    search = shown(sections_of(server)["Search"])
    (lines,) = (panel for panel in search if panel["type"] == "Parallel Coordinates Plot")
    # W&B keeps a run's configuration as `value` below its first key.
    assert [(column["accessor"], column.get("log", False)) for column in lines["columns"]] == [
        ("config:optimizer.value.lr", True),
        ("config:train_data.value.batch_size", False),
        ("config:trainer.value.max_epochs", False),
        ("config:model.value.dice_weight", True),
        ("summary:selected/pixel_AP", False),
    ]


def test_images_are_a_row_a_run(server: Server) -> None:
    run(*OPTIONS)
    browsers = shown(sections_of(server)["Images"])
    assert [(one["type"], one["mediaKeys"]) for one in browsers] == [
        ("Media Browser", ["cases/coin", "heat maps/coin"]),
        ("Media Browser", ["cases/nut", "heat maps/nut"]),
    ]
    assert all(one["gridSettings"] == {"xAxis": "index", "yAxis": "run"} for one in browsers)


def test_curves_are_the_charts_that_wandb_makes_of_a_logged_table(server: Server) -> None:
    run(*OPTIONS)
    curves = {one["stringSettings"]["title"]: one for one in shown(sections_of(server)["Curves"])}
    assert set(curves) == {
        *(f"{level} {chart}" for level in ("image", "single", "pixel") for chart in ("ROC", "precision-recall")),
        "pixel PRO",
    }
    table = wandb.Table(columns=["x", "y", "category"], data=[[0.0, 1.0, "coin"]])
    fields = {"x": "x", "y": "y", "stroke": "category"}
    made = wandb.plot_table("wandb/line/v0", table, fields, {"title": "pixel PRO"})
    made.set_key("curves/pixel PRO")
    expected = made.spec.config_value["panel_config"]
    for key in ("panelDefId", "fieldSettings", "stringSettings", "transform"):
        assert curves["pixel PRO"][key] == expected[key]
    assert '"tableKey", "value": "curves/pixel PRO_table"' in json.dumps(curves["pixel PRO"])
    assert '"tableKey", "value": "curves/pixel PRO_table"' in json.dumps(expected)


def test_the_report_explains_the_same_panels(server: Server) -> None:
    run(*OPTIONS)
    blocks = json.loads(server.views[1]["spec"])["blocks"]
    titles = [text_of(block) for block in blocks if block["type"] == "heading"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    sections = sections_of(server)
    assert titles == list(sections)
    for grid, panels in zip(grids, sections.values(), strict=True):
        assert shown(grid["panelBankSectionConfig"]["panels"]) == shown(panels)
        assert grid["runSets"][0]["project"]["name"] == "clip-ad"
    texts = [text_of(block) for block in blocks if block["type"] == "paragraph" and text_of(block)]
    assert len(texts) == len(titles)


@pytest.mark.parametrize("own", [[], ["categories=[nut]", "metrics=[mine]"]])
def test_a_run_names_its_categories_and_metrics(server: Server, tmp_path: Path, own: list[str]) -> None:
    write_json(tmp_path / PROVENANCE_FILE, PROVENANCE)
    values = {"image_AP": 0.5, "mine": 3.0}
    write_json(tmp_path / METRICS_FILE, {"mean": values, "categories": {"coin": values, "nut": values}})
    assert run("entity=lab", "project=clip-ad", f"run={tmp_path}", *own) == 0
    *bars, _ = shown(sections_of(server)["Categories"])
    expected = [["test/coin/image_AP", "test/nut/image_AP"], ["test/coin/mine", "test/nut/mine"]]
    assert [bar["metrics"] for bar in bars] == ([["test/nut/mine"]] if own else expected)
    assert "xAxisMax" not in bars[-1]  # a user's own metric may be above 1


def test_a_prediction_has_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / PROVENANCE_FILE, PROVENANCE)
    line = refused(capsys, "entity=lab", "project=clip-ad", f"run={tmp_path}")
    assert line == f"expected a test in {tmp_path}, but there is no metrics.json; a prediction has none"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["project=clip-ad", "categories=[nut]"], "expected entity=NAME"),
        (["entity=lab", "categories=[nut]"], "expected project=NAME"),
        (["entity=lab", "project=clip-ad"], "expected run=FOLDER of a finished test, or categories=[bottle,screw]"),
        (["entity=lab", "project=clip-ad", "run=nowhere"], "nowhere holds no run"),
        (["entity=lab", "projekt=clip-ad"], "unknown option 'projekt'; did you mean 'project'?"),
        (["entity="], "expected entity=VALUE, but got 'entity='"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *arguments).startswith(line)


def test_without_the_extra_it_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "experiments.review.panels", raising=False)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "pip install -e '.[review]'" in refused(capsys, *OPTIONS)


def test_without_a_key_nothing_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "there is no API key (wandb login)" in refused(capsys, *OPTIONS)


def test_a_project_that_is_not_there_is_told(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.names = ()
    assert run(*OPTIONS) == 1
    assert "'lab/clip-ad' not found" in capsys.readouterr().err.splitlines()[-1]


def drawn(number: int) -> list[str]:
    """The arguments of a trial as W&B's agent writes them: of each parameter the lowest (0) or highest (-1) value."""
    parameters = load_sweep_config(str(SWEEP))["parameters"]
    ranges = {key: range_.get("values") or [range_["min"], range_["max"]] for key, range_ in parameters.items()}
    return list(
        create_sweep_command_args({"args": {key: {"value": r[number]} for key, r in ranges.items()}})[NO_HYPHENS]
    )


def command(*arguments: str) -> list[str]:
    """The command of a trial, put together as W&B's agent does."""
    parts = load_sweep_config(str(SWEEP))["command"]
    replaced = {"${env}": ["/usr/bin/env"], f"${{{NO_HYPHENS}}}": list(arguments)}
    return [word for part in parts for word in replaced.get(part, [part])]


@pytest.mark.parametrize("number", [0, -1])
def test_every_parameter_of_the_search_is_an_override(number: int) -> None:
    arguments = drawn(number)
    first, *overrides = command(*arguments)[3:]
    assert first == "src.train"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*overrides, "paths.output_dir=/tmp/nowhere"])
        without = compose("train", ["+exp=sdp_plus_visa", "paths.output_dir=/tmp/nowhere"])
    for override in OverridesParser.create().parse_overrides(arguments):
        at = override.key_or_group
        assert OmegaConf.select(config, at) == pytest.approx(override.value())
        assert OmegaConf.select(config, at) != OmegaConf.select(without, at)  # ends that are no defaults
    config.logger = config.callbacks = None  # their interpolations have a value only inside a run
    validate(config, "train")


def test_the_search_sees_held_out_categories_only() -> None:
    search = load_sweep_config(str(SWEEP))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*command(*drawn(0))[4:], "paths.output_dir=/tmp/nowhere"])
    assert search["metric"] == {"name": f"selected/{config.select}", "goal": "maximize"}
    assert config.select in METRIC_NAMES
    assert config.test is False
    assert set(config.val_categories) < set(get_class(config.train_data._target_).published)


def test_both_searches_search_the_same() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweeper = compose("train", ["+exp=sdp_plus_visa", "+sweep=optuna"], return_hydra_config=True).hydra.sweeper
    assert set(sweeper.params) == set(load_sweep_config(str(SWEEP))["parameters"])


@pytest.mark.slow
def test_a_trial_of_the_search_runs(demo: list[str], tmp_path: Path) -> None:
    """As W&B's agent starts it, but for the experiment, which is the demo's, and the server."""
    chosen = {"optimizer.lr": 2e-3, "train_data.batch_size": 16, "trainer.max_epochs": 1, "model.dice_weight": 0.5}
    values = {key: {"value": value} for key, value in chosen.items()}
    (tmp_path / "parameters.yaml").write_text(json.dumps({"wandb_version": 1, **values}))
    replaced = {"+exp=sdp_plus_visa": "+exp=sdp_plus_demo", "val_categories=[screw,tile]": "val_categories=[tile]"}
    few = "train_data.categories=[fabric,tile]"
    words = [replaced.get(word, word) for word in command(*create_sweep_command_args({"args": values})[NO_HYPHENS])]
    folder = tmp_path / "trial"
    places = [f"paths.output_dir={folder}", f"paths.cache_dir={tmp_path / 'cache'}"]
    agent = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "trial1",
        "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "parameters.yaml"),
    }
    done = subprocess.run(
        [*words, *demo, few, *places], cwd=ROOT, env=os.environ | agent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "-> no test" in done.stdout
    (log,) = folder.glob("wandb/offline-run-*")
    read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    (own,) = (record["run"] for record in records if record["type"] == "run")
    assert (own["sweep_id"], own["run_id"]) == ("sweep1", "trial1")
    logged = {key for record in records if record["type"] == "history" for key in record["history"]["item"]}
    assert load_sweep_config(str(SWEEP))["metric"]["name"] in logged
    assert not any(key.startswith("test/") for key in logged)
