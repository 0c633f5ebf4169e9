"""Prove that the frozen numbers are those of the trained supernet; shares no code with :mod:`eqdeploy.freeze`."""
