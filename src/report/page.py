"""Stand-in."""

from pathlib import Path

from src.report.description import Description


def write_page(path: Path, description: Description) -> None:
    """Write."""
    n = sum(len(p.image) + len(p.heat_map) for c in description.cards for _, p in description.pictures(c))
    import json

    path.write_text(json.dumps({k: v for k, v in description.__dict__.items() if k[0] != "_"}, indent=1) + str(n))
