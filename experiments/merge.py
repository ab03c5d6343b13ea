"""Join the parts of an evaluation: `python -m experiments.merge FOLDER... [--out FOLDER]`. See `src.run.merge`."""

from src.run.merge import main

if __name__ == "__main__":
    main()
