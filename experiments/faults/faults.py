"""All faults, by theme."""

from __future__ import annotations

from experiments.faults import damage, data, disk, ends, figures, hostile

FAULTS = [*ends.FAULTS, *disk.FAULTS, *figures.FAULTS, *damage.FAULTS, *data.FAULTS, *hostile.FAULTS]
