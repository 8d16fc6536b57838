"""The exact contribution of every recorded feature value to a model's prediction."""

from whenwhy.attribution.absence import absent_contributions
from whenwhy.attribution.attribute import Attributions, attribute, fit_method
from whenwhy.attribution.baselines import BASELINES, Population, population_of
from whenwhy.attribution.registry import LAWS, Fitted, Method, method, registered_methods
from whenwhy.attribution.targets import TARGETS, Target, target_named

__all__ = [
    "BASELINES", "LAWS", "TARGETS", "Attributions", "Fitted", "Method", "Population", "Target",
    "absent_contributions", "attribute", "fit_method", "method", "population_of", "registered_methods", "target_named",
]  # fmt: skip
