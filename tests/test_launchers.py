"""The example for Slurm, on a cluster made of two shell scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from src.sweeps.trial import read_trials
from tests.cli import Cli, golden_backbone
from tests.golden_reference import ROOT, Golden

# Runs an array's jobs one after the other, as the batch script says; a job starts when it has been announced.
SBATCH = """#!/bin/bash
script="${@: -1}"
cp "$script" "$FAKE_CLUSTER/batch.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_JOB_NODELIST=localhost SLURM_JOB_NAME=clip-ad SLURM_NTASKS_PER_NODE=1
for task in $(seq 0 "${last:-0}"); do
    SLURM_ARRAY_TASK_ID=$task bash "$FAKE_CLUSTER/batch.sh"
done > "$FAKE_CLUSTER/log" 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == --output || "$1" == --error ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/bash\n"}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_CLUSTER", str(folder))
    return folder


@pytest.fixture
def options(golden_a: Golden, tmp_path: Path) -> list[str]:
    data = golden_a.write_mvtec(tmp_path / "mvtec").parent
    few = ["prompts.templates=['a photo of a {}.']", "model.representative=mean", f"paths.data_dir={data}"]
    return ["-m", *golden_backbone(golden_a), *few, "+exp=sdp_mvtec", "hydra/launcher=slurm"]


def test_a_job_of_its_own_is_one_process(cli: Cli, options: list[str]) -> None:
    for several in ("trainer.devices=4", "+trainer.num_nodes=2"):
        assert "trainer.devices=1 trainer.num_nodes=1" in cli.error("eval", *options, several, name="several")
    assert not (cli.folder / "several").exists()


@pytest.mark.slow
def test_each_trial_is_a_job(cli: Cli, options: list[str], cluster: Path) -> None:
    own = ["hydra.launcher.partition=gpu", "model.feature_layers=[12],[99]"]
    done = cli("eval", *options, *own, name="sweep")
    batch = (cluster / "batch.sh").read_text().splitlines()
    for line in ("--partition=gpu", "--array=0-1%2", "--gpus-per-node=1", "--time=240", "--mem=32GB", "--nodes=1"):
        assert f"#SBATCH {line}" in batch
    assert [trial.status for trial in read_trials(done.folder)] == ["finished", "failed"]
    assert done.code == 1
    assert "but got [99]" in done.err
    assert json.loads((done.folder / "0" / "metrics.json").read_text())["categories"]
    command = json.loads((done.folder / "0" / "provenance.json").read_text())["command"]
    assert command.startswith("python -m src.eval ")
