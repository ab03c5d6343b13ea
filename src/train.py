"""Train a model if it has something to train, then test it: `python -m src.train +exp=sdp_plus_visa`."""

from src.cli import run_command


def main() -> None:
    """Console script `clip-ad-train`."""
    run_command("train")


if __name__ == "__main__":
    main()
