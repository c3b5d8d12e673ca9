"""`python -m mmsearch`: the command line."""

from __future__ import annotations

from mmsearch.cli import main

if __name__ == "__main__":
    main()
