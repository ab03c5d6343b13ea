"""Configurations and files that want to run a program, or to write elsewhere."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.faults.commands import EVAL, TRAIN
from experiments.faults.damage import changed, finished_evaluation
from experiments.faults.harness import Fault, Place, expect, is_refused

MONITOR = "lightning.pytorch.callbacks.LearningRateMonitor"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


def marker(place: Place) -> Path:
    """What is there if a program or function ran."""
    return place.root / "work" / "ran"


def target(place: Place, overrides: tuple[str, ...], command: str = "eval") -> None:
    """A node names a function, or a class of another kind: refused before it is called. MARKER is the file it makes."""
    base = EVAL if command == "eval" else TRAIN
    mine = [one.replace("MARKER", str(marker(place))) for one in overrides]
    place.refused(command, *base, *mine, word="_target_")
    expect(not marker(place).exists(), "it was called")
    expect(not (place.root / "run" / "metrics.json").exists(), "the run went on")


def own_callback(place: Place) -> None:
    """A callback of Lightning's, named by the user, is made and called."""
    options = [
        "+callbacks.mine._target_=lightning.pytorch.callbacks.DeviceStatsMonitor",
        "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
    ]
    place.same(place.ok("eval", *EVAL, options[1]), place.undisturbed("eval", *EVAL))


def crafted(place: Place, change: Callable[[str], dict[str, Any]], word: str = "") -> None:
    """A run's folder from a stranger whose provenance wants more than to be repeated."""
    place.given(finished_evaluation, "run")
    changed(**change(str(marker(place))))(place.root / "run" / "provenance.json")
    done = place.run("reproduce", str(place.root / "run"))
    expect(not marker(place).exists(), "a program ran, or a file was written outside")
    expect(done.code == 1, f"it ended with {done.code}")
    errors = [line for line in done.said if line.startswith("error: ")]
    expect(1 <= len(errors) <= 2 and len(errors) == len(done.said), f"expected one line, got {done.said}")
    expect(word in " ".join(errors), f"expected {word!r} in {errors}")


def crafted_but_harmless(place: Place, change: Callable[[str], dict[str, Any]]) -> None:
    """What a provenance says of Hydra's own settings is not followed: refused or left out."""
    place.given(finished_evaluation, "run")
    changed(**change(str(marker(place))))(place.root / "run" / "provenance.json")
    done = place.run("reproduce", str(place.root / "run"))
    expect(not marker(place).exists(), "a program ran, or a file was written outside")
    expect(done.code in (0, 1) and all(line.startswith("error: ") for line in done.said), f"{done.code}: {done.said}")


def repeated(place: Place) -> None:
    """A run as it was recorded is repeated, and its figures are the same to the last digit."""
    place.ok("eval", *EVAL)
    done = place.ok("reproduce", str(place.root / "run"))
    expect("equal exactly" in done.out, done.out[-200:])


def category(place: Place, name: str) -> None:
    """A category that would leave the folder, in predict with maps: refused, or its files stay below the folder."""
    options = [f"test_data.root={place.mvtec / 'candle'}", f"test_data.category={name}", "save_maps=true"]
    done = place.run("predict", *options, to="deep/below/run")
    expect(done.code in (0, 1), f"it ended with {done.code}: {done.said[-1:]}")
    if done.code == 0:
        maps = list(done.folder.rglob("*.npy"))
        expect(len(maps) == 5, f"{len(maps)} of 5 maps are below the run's folder")
    else:
        expect(len(done.said) == 1 and "category" in done.said[0], f"it said {done.said}")


def mvtec_category(place: Place, name: str) -> None:
    """A category that is asked for and is none."""
    place.refused("eval", *EVAL, f"test_data.categories=['{name}']", word="categories")


def folder_option(place: Place, key: str, value: str) -> None:
    """A folder of the data's that lies above their root."""
    (place.root / "data" / "secret").mkdir()
    options = ["data@test_data=folder", f"test_data.root={place.mvtec / 'candle'}", "test_data.category=candle"]
    others = {"normal_dir": "test/good", "anomalous_dir": "test/broken", "mask_dir": "ground_truth/broken"} | {
        key: value
    }
    place.refused("eval", *EVAL, *options, *(f"test_data.{k}={v}" for k, v in others.items()), word=value)


def number(place: Place, command: str, override: str) -> None:
    """A number that is none, or far from what is meant: one line, and no figures."""
    place.refused(command, *(EVAL if command == "eval" else TRAIN), override)
    expect(not (place.root / "run" / "metrics.json").exists(), "there are figures")


def a_folder_for_a_file(place: Place, key: str) -> None:
    """A folder is named where a file is wanted."""
    place.refused("eval", *EVAL, f"{key}={place.mvtec}", word="mvtec")


def few_open_files(place: Place) -> None:
    """The system lets a run open few files: one line, or it does with them."""
    limits = (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    done = place.run("train", *TRAIN, meddle=[lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, limits)])
    if done.code == 0:
        place.same(done, place.undisturbed("train", *TRAIN))
    else:
        is_refused(done)


def _set(path: str, node: Any) -> Callable[[str], dict[str, Any]]:
    """An entry of provenance.json, with MARKER replaced."""
    return lambda marked: {path: json.loads(json.dumps(node).replace("MARKER", marked))}


_LATER = f"{{_target_: {MONITOR}, logging_interval: {{_target_: %s}}}}"
FAULTS = [
    *(
        Fault(f"target_{name}", 14, partial(target, overrides=overrides, command=command))
        for name, command, overrides in (
            (
                "of_a_callback_copies",
                "eval",
                ("+callbacks.x._target_=shutil.copyfile", "+callbacks.x.src=/etc/hostname", "+callbacks.x.dst=MARKER"),
            ),
            (
                "of_a_callback_is_a_class_of_another_kind",
                "eval",
                ("+callbacks.x._target_=subprocess.Popen", "+callbacks.x.args=[touch,MARKER]"),
            ),
            (
                "of_a_callback_is_reproduce",
                "eval",
                ("+callbacks.x._target_=src.reproduce.run", "+callbacks.x.command=[touch,MARKER]"),
            ),
            (
                "of_a_callback_is_a_method_of_a_class",
                "eval",
                ("+callbacks.x._target_=pathlib.Path.touch", "+callbacks.x.self=MARKER"),
            ),
            ("of_a_logger_is_a_function", "eval", ("+logger.x._target_=os.mkdir", "+logger.x.path=MARKER")),
            ("of_the_model_is_a_function", "eval", ("model._target_=subprocess.call", "+model.args=[touch,MARKER]")),
            ("of_the_data_is_a_function", "eval", ("test_data._target_=os.mkdir", "+test_data.path=MARKER")),
            (
                "of_the_trainer_is_a_function",
                "eval",
                ("trainer._target_=subprocess.call", "+trainer.args=[touch,MARKER]"),
            ),
            ("of_the_prompts_is_a_function", "eval", ("prompts._target_=os.mkdir", "+prompts.path=MARKER")),
            (
                "of_the_optimizer_is_a_function",
                "train",
                ("optimizer._target_=subprocess.call", "optimizer._partial_=false", "+optimizer.args=[touch,MARKER]"),
            ),
            ("of_the_optimizer_is_called_later", "train", ("optimizer._target_=print", "optimizer._partial_=true")),
            (
                "of_the_training_data_is_a_function",
                "train",
                ("train_data._target_=os.mkdir", "+train_data.path=MARKER"),
            ),
            ("below_a_callback_is_a_function", "eval", ("+callbacks.x=" + _LATER % "os.mkdir, path: MARKER",)),
            (
                "below_a_callback_is_popen",
                "eval",
                ("+callbacks.x=" + _LATER % "subprocess.Popen, args: [touch, MARKER]",),
            ),
            (
                "below_a_callback_is_an_alias",
                "eval",
                ("+callbacks.x=" + _LATER % "src.reproduce.subprocess.Popen, args: [touch, MARKER]",),
            ),
            (
                "below_a_callback_is_later",
                "eval",
                (f"+callbacks.x={{_target_: {LAMBDA}, on_test_start: {{_target_: os.system, _partial_: true}}}}",),
            ),
            (
                "below_a_callback_in_a_list",
                "eval",
                (f"+callbacks.x={{_target_: {MONITOR}, _args_: [{{_target_: os.mkdir, path: MARKER}}]}}",),
            ),
            ("below_the_profiler", "eval", ("trainer.profiler={_target_: os.mkdir, path: MARKER}",)),
            ("below_the_model", "eval", ("+model.smoothing_sigma={_target_: os.mkdir, path: MARKER}",)),
            ("in_a_node_without_a_kind", "eval", ("+callbacks.x={y: {_target_: os.mkdir, path: MARKER}}",)),
            ("is_a_module", "eval", ("+callbacks.x._target_=os.path",)),
            (
                "is_instantiate",
                "eval",
                ("+callbacks.x={_target_: hydra.utils.instantiate, config: {_target_: os.mkdir, path: MARKER}}",),
            ),
            ("is_get_method", "eval", ("+callbacks.x={_target_: hydra.utils.get_method, path: os.system}",)),
        )
    ),
    Fault("target_of_a_callback_is_lightnings", 14, own_callback),
    *(
        Fault(f"crafted_{name}", 14, partial(crafted, change=change, word=word))
        for name, change, word in (
            (
                "callback",
                _set(
                    "config__callbacks", {"x": {"_target_": "shutil.copyfile", "src": "/etc/hostname", "dst": "MARKER"}}
                ),
                "",
            ),
            (
                "callback_of_reproduce",
                _set("config__callbacks", {"x": {"_target_": "src.reproduce.run", "command": ["touch", "MARKER"]}}),
                "",
            ),
            ("kind_above", _set("kind", "../../../work/ran"), "kind"),
            ("kind_absolute", _set("kind", "MARKER"), "kind"),
            ("kind_unknown", _set("kind", "os"), "kind"),
            ("kind_is_a_list", _set("kind", ["eval"]), "provenance.json"),
            ("config_is_a_list", _set("config", [1]), "provenance.json"),
            ("paths_is_a_word", _set("config__paths", "here"), "provenance.json"),
            (
                "trainer_is_a_function",
                _set("config__trainer", {"_target_": "subprocess.call", "args": ["touch", "MARKER"]}),
                "",
            ),
            ("device_is_null", _set("device", None), "provenance.json"),
            ("code_is_a_word", _set("code", "good"), "provenance.json"),
            ("data_is_a_list", _set("data", [1]), "provenance.json"),
            ("trained_weights_is_a_word", _set("trained_weights", "x"), "provenance.json"),
        )
    ),
    *(
        Fault(f"crafted_{name}", 14, partial(crafted_but_harmless, change=change))
        for name, change in (
            ("hydra_run_dir", _set("config__hydra", {"run": {"dir": "MARKER"}})),
            (
                "hydra_callbacks",
                _set(
                    "config__hydra",
                    {"callbacks": {"x": {"_target_": "shutil.copyfile", "src": "/etc/hostname", "dst": "MARKER"}}},
                ),
            ),
            ("hydra_launcher", _set("config__hydra", {"mode": "MULTIRUN", "sweep": {"dir": "MARKER"}})),
            (
                "hydra_logging",
                _set(
                    "config__hydra",
                    {
                        "job_logging": {
                            "version": 1,
                            "handlers": {"f": {"class": "logging.FileHandler", "filename": "MARKER"}},
                            "root": {"handlers": ["f"]},
                        }
                    },
                ),
            ),
            (
                "defaults",
                _set("config__defaults", [{"hydra": "default"}, "_self_", {"override hydra/job_logging": "default"}]),
            ),
            ("interpolation", _set("config__backbone__name", "${oc.env:HOME}")),
            (
                "logger",
                _set("config__logger", {"x": {"_target_": "shutil.copyfile", "src": "/etc/hostname", "dst": "MARKER"}}),
            ),
            ("profiler", _set("config__trainer__profiler", {"_target_": "os.mkdir", "path": "MARKER"})),
        )
    ),
    Fault("repeated_as_recorded", 14, repeated),
    *(
        Fault(f"category_{label}", 15, partial(category, name=name))
        for label, name in (
            ("above", "../../x"),
            ("two_dots", ".."),
            ("absolute", "/x"),
            ("in_the_middle", "a/../../../x"),
            ("with_backslashes", r"..\\..\\x"),
            ("of_nothing", ""),
            ("a_dot", "."),
            ("a_drive", "C:/x"),
            ("very_long", "x" * 300),
            ("with_a_line_end", "a b"),
        )
    ),
    *(
        Fault(f"categories_{label}", 15, partial(mvtec_category, name=name))
        for label, name in (("above", "../mvtec/candle"), ("absolute", "/etc"), ("a_dot", "."))
    ),
    *(
        Fault(f"folder_{key}_{label}", 15, partial(folder_option, key=key, value=value))
        for key in ("normal_dir", "anomalous_dir", "mask_dir")
        for label, value in (("above", "../secret"),)
    ),
    *(
        Fault(f"number_{override.replace('=', '_is_')}", 3, partial(number, command=command, override=override))
        for command, overrides in (
            ("eval", ("metrics_memory_gb=nan", "model.smoothing_sigma=nan", "model.smoothing_sigma=-1", "seed=1e30")),
            ("eval", ("test_data.batch_size=true", "test_data.eval_size=0", "test_data.image_size=-1", "seed=-1")),
            ("train", ("optimizer.lr=nan", "optimizer.lr=-1", "model.focal_weight=nan", "trainer.max_epochs=2.5")),
            ("train", ("trainer.gradient_clip_val=nan", "train_data.batch_size=0", "feature_cache.max_gb=nan")),
        )
        for override in overrides
    ),
    *(
        Fault(f"a_folder_for_{key}", 8, partial(a_folder_for_a_file, key=key))
        for key in ("ckpt_path", "backbone.pretrained", "backbone.config")
    ),
    Fault("few_open_files", 11, few_open_files),
]
