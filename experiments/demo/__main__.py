"""Run SDP and SDP+ on the demo data, print their tables side by side and draw the best and worst cases.

`python -m experiments.demo`, or `clip-ad-demo`. Results go to outputs/demo, in the folder where it is typed; an earlier
pair is moved aside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from experiments.demo.compare import side_by_side
from experiments.demo.pictures import draw_cases

OUTPUT = Path("outputs/demo")
RUNS = {"sdp": ("src.eval", "sdp_demo"), "sdp_plus": ("src.train", "sdp_plus_demo")}


def main() -> None:
    """Run, compare, draw."""
    _move_aside(OUTPUT)
    for name, (module, experiment) in RUNS.items():
        options = [f"+exp={experiment}", f"paths.output_dir={OUTPUT / name}", "save_maps=true"]
        print(f"\n$ python -m {module} {' '.join(options)}", flush=True)
        done = subprocess.run([sys.executable, "-m", module, *options], check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)  # the command has said why
    results = {name: json.loads((OUTPUT / name / "metrics.json").read_text()) for name in RUNS}
    print()
    Console().print(side_by_side(results))
    pictures = draw_cases([OUTPUT / name for name in RUNS], OUTPUT)
    print("in percent; on categories that the projections of SDP+ have never seen")
    print("image, mask and both maps of the best and the worst cases:")
    for path in pictures:
        print(f"  {path}")


def _move_aside(folder: Path) -> None:
    """Keep an earlier pair under the time it was made."""
    if folder.exists():
        made = datetime.fromtimestamp(folder.stat().st_mtime)
        folder.rename(folder.with_name(f"{folder.name}_{made:%Y-%m-%d_%H-%M-%S.%f}"))


if __name__ == "__main__":
    main()
