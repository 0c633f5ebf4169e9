"""Train one elastic quantized network, then ship a proven model to every device from it."""

import os as _os  # loaded before any folder is on the path, as ``eqdeploy.__main__`` needs it; pathlib is not

__version__ = "0.1.0"

# In a source checkout exporters/ and profiles/ sit beside this package; in a wheel they are inside it.
_root = _os.path.dirname(_os.path.dirname(_os.path.realpath(__file__)))
if _os.path.isfile(_os.path.join(_root, "pyproject.toml")) and not _os.path.exists(
    _os.path.join(_root, "eqdeploy", "exporters")
):
    __path__.append(_root)
