"""One module for each file format, all behind the contract of :mod:`eqdeploy.exporters.contract`."""

if __name__ != "eqdeploy.exporters":
    # A second copy of every module under another name would make two of each class.
    raise ImportError(f"import eqdeploy.exporters, not {__name__!r}")
