"""The exact contribution of every recorded feature value to a model's prediction."""

from whenwhy.attribution.attribute import Attributions, attribute
from whenwhy.attribution.registry import LAWS, Method, method, registered_methods

__all__ = ["LAWS", "Attributions", "Method", "attribute", "method", "registered_methods"]
