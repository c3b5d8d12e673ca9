"""`python -m mmsearch`: the command line."""

from mmsearch.cli import main

if __name__ == "__main__":
    main()
