"""The exact contribution of every recorded feature value to a model's prediction."""

from whenwhy.attribution.attribute import Attributions, attribute
from whenwhy.attribution.baselines import BASELINES, Population, population_of
from whenwhy.attribution.registry import LAWS, Method, method, registered_methods
from whenwhy.attribution.targets import TARGETS, Target, target_named

__all__ = [
    "BASELINES", "LAWS", "TARGETS", "Attributions", "Method", "Population", "Target",
    "attribute", "method", "population_of", "registered_methods", "target_named",
]  # fmt: skip
