"""The command line: parse, make one library call, show the answer.

Only this package prints and exits. ``docs/command-line.md`` describes what is stable: commands, options, streams
and exit codes.
"""

from eqdeploy.cli.entry import main

__all__ = ["main"]
