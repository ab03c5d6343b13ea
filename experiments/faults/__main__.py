"""Do faults, and tell which were survived: `python -m experiments.faults [NAME...]`.

Without names, all of them. The last line is `survived/tried`; the exit code is 1 if one was not survived.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from experiments.faults.faults import FAULTS
from experiments.faults.harness import FailedError, Fault, NotHereError, Place, Tiny


def try_fault(fault: Fault, root: Path, tiny: Tiny) -> str | None:
    """Do a fault in a new folder. Returns None if it was survived, else the reason.

    Raises:
        NotHereError: it can't be done here.
    """
    try:
        fault.check(Place(root, tiny))
    except FailedError as failed:
        return " ".join(str(failed).split())
    except NotHereError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({Path(place.filename).name}:{place.lineno})"
        )
    return None


def main(arguments: Sequence[str], faults: Sequence[Fault] = FAULTS) -> int:
    """Read the command line, do what it names of the faults, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="only tell the names")
    parser.add_argument("--report", type=Path, help="write {name: reason or null} to this JSON file, too")
    parser.add_argument("--keep", type=Path, help="a new folder for what the runs leave; it is not removed")
    given = parser.parse_args(arguments)
    known = {fault.name: fault for fault in faults}
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"there is no fault {', '.join(unknown)}; --list shows the {len(known)} that there are")
    chosen = [known[name] for name in given.names] or list(faults)
    if given.list:
        print("\n".join(f"{fault.item:3} {fault.name}" for fault in chosen))
        return 0
    root = given.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    outcomes: dict[str, str | None] = {}
    try:
        tiny = Tiny(root / "shared")
        for fault in chosen:
            started = time.monotonic()
            try:
                outcomes[fault.name] = reason = try_fault(fault, root / fault.name, tiny)
                verdict = "survived" if reason is None else f"FAILED: {reason}"
            except NotHereError as why:
                verdict = f"not tried: {why}"
            print(f"{fault.item:3} {fault.name:42} {time.monotonic() - started:5.1f} s  {verdict}", flush=True)
            if not given.keep:
                shutil.rmtree(root / fault.name, ignore_errors=True)
    finally:
        if not given.keep:
            shutil.rmtree(root, ignore_errors=True)
    survived = sum(reason is None for reason in outcomes.values())
    print(f"{survived}/{len(outcomes)} survived/tried")
    if given.report:
        given.report.write_text(json.dumps(outcomes, indent=2) + "\n")
    return int(survived < len(outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
