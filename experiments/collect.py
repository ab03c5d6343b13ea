"""One table of a sweep's trials: `python -m experiments.collect <sweep folder>`. See `src.sweeps.collect`."""

import sys

from src.sweeps.collect import main

if __name__ == "__main__":
    sys.exit(main())
