"""The commands as library calls: each takes a request, tells a listener what it does, and returns plain data."""

from eqdeploy.pipeline.convert import convert_float
from eqdeploy.pipeline.evaluate import evaluate
from eqdeploy.pipeline.export import export_profiles
from eqdeploy.pipeline.fit import fit
from eqdeploy.pipeline.latency import measure_latency
from eqdeploy.pipeline.opened import Artifact, open_artifact
from eqdeploy.pipeline.resolve import resolve_profile
from eqdeploy.pipeline.sample import sample
from eqdeploy.pipeline.search import search
from eqdeploy.pipeline.train import train
from eqdeploy.pipeline.validate import validate_artifact

__all__ = [
    "Artifact",
    "convert_float",
    "evaluate",
    "export_profiles",
    "fit",
    "measure_latency",
    "open_artifact",
    "resolve_profile",
    "sample",
    "search",
    "train",
    "validate_artifact",
]
