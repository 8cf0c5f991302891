"""The command line as a module: `python -m riemerge` is `riemerge`."""

from riemerge.cli import main

if __name__ == "__main__":
    main(prog_name="riemerge")
