"""Train one elastic quantized network, then ship a proven model to every device from it.

What a program or a notebook needs is here, and is loaded when it is first used; ``docs/api.md`` describes it.
"""

TYPE_CHECKING = False  # type checkers know this name; importing it from typing would take as long as all of the rest
if TYPE_CHECKING:
    from eqdeploy.api import (
        EqDeployError,
        Gates,
        SearchOptions,
        convert_float,
        evaluate,
        export,
        load_supernet,
        open_artifact,
        resolve_profile,
        search_subnet,
        train,
        validate,
    )

__version__ = "0.1.0"

__all__ = [
    "EqDeployError",
    "Gates",
    "SearchOptions",
    "__version__",
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

if not TYPE_CHECKING:  # for a type checker a name that is not there would be an object

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from eqdeploy import api

        value: object = getattr(api, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names; submodules are imported, not found here."""
    return sorted(__all__)
