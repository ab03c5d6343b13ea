"""Score images without labels: `python -m src.predict test_data.root=/my/images test_data.category=bottle`."""

from src.cli import run_command


def main() -> None:
    """Console script `clip-ad-predict`."""
    run_command("predict")


if __name__ == "__main__":
    main()
