"""Freeze a calibrated subnet into the numbers that a device gets."""
