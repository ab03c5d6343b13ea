"""The examples in the docstrings run, and every public function and class has one or is listed with the reason."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest
from typing_extensions import is_typeddict

import datamodules
import src

MODULES = [
    found.name for root in (src, datamodules) for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
]
DRAWING = "datamodules.demo"  # of the demo's objects; its pictures are the examples

# By the reason, the functions and classes without an example: `module: names`.
WITHOUT = {
    "a command, or a step of one that takes a whole configuration; src/train.py shows how they are called": """
        src.train: train main
        src.eval: evaluate main
        src.predict: predict main
        src.calibrate: calibrate main
        src.reproduce: reproduce read_record main
        src.cli: run_command
        src.run.build: open_folder find_weights build_train_data build_method origin_of load_weights
        src.run.build: build_protocol check_test build_module describe check_calibration calibrated_for read_decisions
        src.run.build: describe_decisions make_data find_references open_references
        src.run.steps: serve_features load_selected_epoch note_unreadable tell_unreadable write_calibration
        src.run.trainer: build_trainer
        src.run.merge: read_part merge main
        src.run.provenance: describe_command
        src.features.setup: open_feature_cache
        src.features.cache: FeatureCache
        src.callbacks.case_recorder: cases_of
        src.callbacks.overlay_writer: write_overlays
        src.callbacks.report: write_report
        src.report.description: describe
        src.report.page: write_page
        src.sweeps.collect: main
    """,
    "works in a process that Hydra has started": """
        src.sweeps.checks: SweepCallback
        src.sweeps.trial: current_trial write_trial run_in_new_process
    """,
    "changes the process, or needs several of them": """
        src.environment: before_composing before_running
        src.stopping: listen_again end_with_parent
        src.metrics.own: of_all_processes
        src.metrics.exchange: summed gathered gathered_objects common_dtype
    """,
    "needs a run of W&B or TensorBoard": """
        src.callbacks.wandb_review: review log_files log_review log_weights use_checkpoint learning_rates
        src.callbacks.tensorboard_review: write_review
        src.run.trackers: build_loggers wandb_arguments identity
        src.run.folder: close_loggers
    """,
    "others extend it; docs/extending.md shows how": """
        src.models.method: Method FewShotMethod TextFeatures
        src.models.text: ClassMatrices
        src.anomaly_module: AnomalyModule
        src.metrics.base: CpuMetric CurveMetric RegionCurveMetric
    """,
    "what another one gives or takes, and stands in the example of that": """
        src.config: BackboneConfig PathsConfig FeatureCacheConfig
        src.clip.backbone: BackboneSource
        src.models.dual_path: Level Block
        src.models.value_path: Paths
        src.models.prompts: Sentences
        src.run.metric_state: read_header
        src.run.trained_weights: TrainedWeights load_trained_weights
        src.reproduce: Recorded
        src.report.cases: Case Cases Picture Table recover write_ordered
        src.report.description: Description Pictures
        src.report.page: Cell Table
        src.report.media: CasePicture charts ranked_cases case_pictures
        src.metrics.functional.components: ComponentAreas
        src.metrics.functional.curve: Curve AnomalousSide
        src.metrics.functional.f1_max: BestF1
        src.scoring: Scorer Memory
        src.detector: Prediction
        datamodules.photos: PhotoDataset
        datamodules.references: ReferencePhotos given_references
        datamodules.visa: Row
    """,
    "a part of the metrics, not of their package's names": """
        src.metrics.base: joined summarise points_of
        src.metrics.own: add add_maps value_of
        src.metrics.functional.arguments: as_scores as_truth check_shape check_ndim
        src.metrics.functional.aupro: ProSegments pro_segments
        src.metrics.functional.bits: to_ordered_bits from_ordered_bits
    """,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")  # an example may show what a user is warned of
def test_examples_give_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_and_classes_have_an_example() -> None:
    modules = [importlib.import_module(name) for name in MODULES if not name.startswith(DRAWING)]
    without = {name for module in modules for name in public_names(module) - names_with_example(module)}
    assert without == {name for lines in WITHOUT.values() for line in lines.split("\n") for name in listed(line)}


def listed(line: str) -> list[str]:
    module, _, names = line.strip().partition(": ")
    return [f"{module}.{name}" for name in names.split()]


def public_names(module: ModuleType) -> set[str]:
    """The functions and classes that a module defines. The type of a dictionary is no class that anybody calls."""
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    return {
        f"{module.__name__}.{name}"
        for name in own
        if callable(vars(module)[name]) and not name.startswith("_") and not is_typeddict(vars(module)[name])
    }


def names_with_example(module: ModuleType) -> set[str]:
    """Those whose docstring has an example that runs."""
    found = doctest.DocTestFinder().find(module)
    return {test.name for test in found if any(doctest.SKIP not in one.options for one in test.examples)}
