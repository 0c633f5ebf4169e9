"""What a profile's exporter refuses, asked before there is anything to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.contract import EarlyChecks, get_exporter
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile


def exporter_options(profile: DeviceProfile) -> dict[str, object]:
    """Options as the exporter of a profile gets them."""
    return {"opset": profile.runtime.opset, **profile.export.options}


@contextmanager
def naming(profile: DeviceProfile) -> Iterator[None]:
    """Let errors say of which profile they are: an exporter knows options and tensors, not whose they are."""
    try:
        yield
    except ProfileError as error:
        where = ": ".join(filter(None, (profile.name, error.where)))
        raise ProfileError(error.message, where=where, hint=error.hint) from error


def require_exporter(profile: DeviceProfile) -> None:
    """Refuse a profile before anything is loaded.

    Raises:
        ProfileError: If its exporter is not installed or takes other options.
        MissingDependencyError: If the package that registers the exporter cannot be imported.
    """
    try:
        exporter = get_exporter(profile.export.format)
    except ProfileError as error:
        where = error.where or f"{profile.name}: export.format"
        raise ProfileError(error.message, where=where, hint=error.hint) from error
    if isinstance(exporter, EarlyChecks):
        with naming(profile):
            exporter.check_options(exporter_options(profile))


def require_plan(profile: DeviceProfile, plan: DevicePlan) -> None:
    """Refuse a plan that the exporter of a profile cannot write, whatever the numbers will be.

    Raises:
        ProfileError: If it cannot; names profile, layer or tensor, and the key to change.
    """
    exporter = get_exporter(profile.export.format)
    if isinstance(exporter, EarlyChecks):
        with naming(profile):
            exporter.check_plan(plan, exporter_options(profile))
