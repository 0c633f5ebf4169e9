"""Run the command line as ``python -m eqdeploy``, with nothing imported from the working directory.

``python -m`` puts the working directory first on the import path: a ``json.py`` in a folder under inspection would be
executed. It is taken off again before anything else is imported; above stand only modules that the interpreter itself
has loaded. What the user names on the command line is found all the same
(:func:`eqdeploy.user_code.working_directory_importable`).
"""

import os
import sys


def forget_working_directory() -> None:
    """Take the working directory off the import path if ``python -m`` has put it there."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed: nothing can be imported from it
        return
    if not sys.flags.safe_path and sys.path[:1] == [here]:
        del sys.path[0]


if __name__ == "__main__":
    forget_working_directory()

    from eqdeploy.cli import main

    main()
