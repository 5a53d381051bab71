"""`python -m smallthinker` and the `smallthinker` command."""

from smallthinker.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

__all__ = ["main"]
