"""Test a model: `python -m src.eval +exp=sdp_visa`."""

from src.cli import run_command


def main() -> None:
    """Console script `clip-ad-eval`."""
    run_command("eval")


if __name__ == "__main__":
    main()
