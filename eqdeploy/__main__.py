"""Run the command line as ``python -m eqdeploy``."""

from eqdeploy.cli import main

if __name__ == "__main__":
    main()
