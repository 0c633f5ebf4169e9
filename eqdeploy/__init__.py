"""Train one elastic quantized network, then ship a proven model to every device from it."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a source checkout exporters/ and profiles/ sit beside this package; in a wheel they are inside it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and not (_root / "eqdeploy" / "exporters").exists():
    __path__.append(str(_root))
