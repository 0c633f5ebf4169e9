"""The commands as library calls: each takes a request, tells a listener what it does, and returns plain data."""

from eqdeploy.pipeline.evaluate import evaluate
from eqdeploy.pipeline.export import export_profiles
from eqdeploy.pipeline.fit import fit
from eqdeploy.pipeline.resolve import resolve_profile
from eqdeploy.pipeline.sample import sample
from eqdeploy.pipeline.train import train
from eqdeploy.pipeline.validate import validate_artifact

__all__ = ["evaluate", "export_profiles", "fit", "resolve_profile", "sample", "train", "validate_artifact"]
