"""W&B that answers with an error costs a line, and not the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wandb

from src.callbacks import wandb_review
from src.files import write_json
from src.processes import warned
from src.run.results import PROVENANCE_FILE
from tests.records import PROVENANCE


class Gone:
    """A run whose server has gone."""

    offline = False

    def use_artifact(self, artifact: Any) -> None:
        raise wandb.errors.CommError("the server is gone")


def test_what_was_logged_before_an_error_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "sdp_plus.safetensors"
    weights.write_bytes(b"weights")
    checkpoint = {"file": str(weights), "sha256": "a"}
    write_json(tmp_path / PROVENANCE_FILE, PROVENANCE | {"checkpoint": checkpoint})
    monkeypatch.setattr(wandb_review, "describe", lambda *_: None)
    monkeypatch.setattr(wandb_review, "review", lambda *arguments: arguments[-1].append("8 images of nut"))
    monkeypatch.setattr(wandb_review, "log_files", lambda *arguments: arguments[-1].append("metrics.json"))
    logged: list[str] = []
    with pytest.warns(UserWarning, match="no lineage in W&B: the server is gone"):
        wandb_review.log_review(Gone(), tmp_path, None, 8, logged)  # type: ignore[arg-type]
    assert logged == ["8 images of nut", "metrics.json"]


def test_an_error_of_wandb_is_a_line_and_a_bug_has_its_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="no review in W&B: refused"), warned("review in W&B"):
        raise wandb.errors.UsageError("refused")
    assert "Traceback" not in capsys.readouterr().err
    with pytest.warns(UserWarning, match="no review in W&B: 'a bug'"), warned("review in W&B"):
        raise KeyError("a bug")
    assert "Traceback" in capsys.readouterr().err
