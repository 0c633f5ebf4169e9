"""Data that ship with the package: the handwritten digits (see ``DIGITS-LICENSE.md``)."""
