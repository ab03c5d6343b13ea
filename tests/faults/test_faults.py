"""Twenty-seven of the faults of `python -m experiments.faults`, and faults that nothing survives.

They are done by one process, which has its imports loaded before it forks; a session has it do what was chosen.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.golden_reference import ROOT

pytestmark = pytest.mark.slow

CHOSEN = [
    "own_method_after_the_projects",
    "batches_of_1_before_in_eval",
    "features_cache_of_zeros",
    "loss_of_nan_later",
    "two_started_together",
    "links_loop",
    "one_copy_as_training_data",
    "part_state_swapped",
    "part_predictions_doubled",
    "maps_do_not_overwrite_each_other",
    "visa_rows_repeated",
    "twelve_bits_warn",
    "sigterm_in_train",
    "sigint_in_a_sweep",
    "killed_while_the_checkpoint_is_written",
    "newest_checkpoint_cut",
    "disk_full_at_60_percent_of_train",
    "no_room_for_the_state",
    "no_room_for_the_page",
    "no_room_for_the_pictures",
    "no_room_for_a_parts_pictures",
    "killed_while_the_page_is_written",
    "csv_goes_on",
    "target_of_a_callback_copies",
    "crafted_callback",
    "visa_image_above_the_root",
    "category_above",
]
WRONG = {
    "other_figures": "metrics.json is not that of an undisturbed run",
    "is_accepted": "expected exit code 1, but it is 0",
    "hangs": "hangs",
    "has_a_traceback": "what nobody expects",
    "writes_outside": "it wrote outside",
    "changes_what_is_not_its_own": "it changed what is not its own",
    "leaves_a_process": "1 processes that it has started are left",
    "is_not_disturbed": "it was not killed",
    "is_wrong_itself": "KeyError: 'a mistake in a fault'",
}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Of each fault that was chosen: why it was not survived, or None."""
    items = [item for item in request.session.items if item.module is request.module]  # type: ignore[attr-defined]
    names = [item.callspec.params["name"] for item in items if "name" in item.callspec.params]  # type: ignore[attr-defined]
    report = tmp_path_factory.mktemp("faults") / "report.json"
    command = [sys.executable, "-m", "tests.faults.doing", *names, "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report.is_file(), done.stderr
    outcome: dict[str, str | None] = json.loads(report.read_text())
    survived = sum(reason is None for reason in outcome.values())
    assert done.stdout.splitlines()[-1] == f"{survived}/{len(outcome)} survived/tried"
    assert done.returncode == int(survived < len(outcome))
    return outcome


@pytest.mark.parametrize("name", CHOSEN)
def test_survived(name: str, outcomes: dict[str, str | None]) -> None:
    assert outcomes[name] is None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str, outcomes: dict[str, str | None]) -> None:
    assert WRONG[name] in str(outcomes[name])
