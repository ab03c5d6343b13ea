"""The memory of a sweep, trial by trial: one model at a time, however many trials there are.

`python -m experiments.benchmarks.sweep_memory` runs one sweep of 30 evaluations in this process: `ViT-B-16-plus-240`
with random weights (834 MB), a category of the demo data, one prompt template. What the models compute means nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from experiments.benchmarks.runs import ARCHITECTURE
from experiments.benchmarks.timing import print_table, set_threads, write_results
from src.eval import main as evaluate

MB = 1e6


class Curve:
    """Notes the memory of this process when the model of a trial is about to be built, and when it is there."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def watch(self) -> None:
        """From now on, note it around the building of every model."""
        from src.clip.backbone import Backbone

        build = Backbone.__init__

        def noted(model: Backbone, *args: Any, **kwargs: Any) -> None:
            before = resident()
            build(model, *args, **kwargs)
            self.rows.append({"trial": len(self.rows), "before its model (MB)": before, "with it (MB)": resident()})
            print(self.rows[-1], file=sys.stderr, flush=True)

        setattr(Backbone, "__init__", noted)  # noqa: B010 - mypy refuses the assignment


def resident() -> int:
    """Memory of this process that is in RAM now, in MB (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields["VmRSS"].split()[0]) * 1024 / MB)


def main() -> None:
    """Run the sweep, print its curve and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the demo data is, or will be drawn")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="the sweep's folder")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--batches", type=int, default=1, help="of 2 images, tested in each trial")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    output = options.work / "sweep_memory"
    shutil.rmtree(output, ignore_errors=True)
    curve = Curve()
    curve.watch()
    sys.argv = ["src/eval.py", "-m", *overrides(options, output)]
    evaluate()
    print_table(f"A sweep of {options.trials} trials", curve.rows)
    write_results("sweep_memory", {"curve": curve.rows}, trials=options.trials, threads=options.threads)


def overrides(options: argparse.Namespace, output: Path) -> list[str]:
    """The sweep's command line."""
    return [
        f"paths.data_dir={options.data.resolve()}",
        f"paths.output_dir={output.resolve()}",
        "data@test_data=demo",
        "test_data.categories=[coin]",
        "test_data.batch_size=2",
        "test_data.num_workers=0",
        f"backbone.name={ARCHITECTURE}",
        "backbone.pretrained=null",
        "prompts.templates=['a {}.']",
        "model.representative=mean",
        "trainer.accelerator=cpu",
        "~callbacks.progress",
        "+trainer.enable_progress_bar=false",
        f"+trainer.limit_test_batches={options.batches}",
        f"seed={','.join(map(str, range(options.trials)))}",
    ]


if __name__ == "__main__":
    main()
