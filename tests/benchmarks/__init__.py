"""Measurements: a module each, with `measure(small) -> dict`; they are run by hand or by a test of their figures."""
