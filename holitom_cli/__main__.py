"""`python -m holitom_cli` is the same as `holitom`."""

from holitom_cli.cli import main

if __name__ == "__main__":
    main()
