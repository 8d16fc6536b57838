"""whenwhy: when did a feature's value matter, and why did the model predict what it did."""

__version__ = "0.1.0"
