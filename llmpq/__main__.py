"""`python -m llmpq` and the `llmpq` script."""

from llmpq.cli import main

if __name__ == "__main__":
    main()
