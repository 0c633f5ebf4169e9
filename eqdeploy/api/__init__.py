"""The public surface: plain functions that a program or a notebook calls as ``eqdeploy.export(...)``.

Each builds a request and hands it to the pipeline, as the command line does. In contrast to that, nothing here reads
``eqdeploy.yaml``, prints, or bounds memory and time.

Every error that a user can act upon is an :class:`EqDeployError`, which says what is wrong (``message``), where
(``where``) and what would be right (``hint``); an option that it names, such as ``--force``, is the argument of that
name. A model that is written but fails its proof, or misses a gate, is not raised but answered: see ``failure`` of what
is returned.

Arguments that several functions share:

* ``profile``: name of a shipped device profile or path of a YAML file.
* ``supernet``: name of a shipped supernet or path of a checkpoint.
* ``model``: what makes the float network, where the checkpoint does not name a known one: a function without arguments
  that returns a ``torch.nn.Module``, or ``"package.module:function"``.
* ``data``: ``"digits"`` for the shipped set, or a path; ``docs/data.md`` names the kinds. With ``run_code`` it may be
  ``"package.module:function"``, which is imported and called.
* ``seed``: seed of every random choice; the same inputs give the same bytes.
* ``force``: whether files that are there already may be replaced.
* ``progress``: who is told what is being done, a :class:`eqdeploy.progress.Progress`; nobody by default.
"""

from eqdeploy.api.artifacts import evaluate, open_artifact, validate
from eqdeploy.api.devices import export, resolve_profile, search_subnet
from eqdeploy.api.supernets import convert_float, load_supernet, train
from eqdeploy.errors import EqDeployError
from eqdeploy.requests import Gates, SearchOptions

__all__ = [
    "EqDeployError",
    "Gates",
    "SearchOptions",
    "convert_float",
    "evaluate",
    "export",
    "load_supernet",
    "open_artifact",
    "resolve_profile",
    "search_subnet",
    "train",
    "validate",
]
