"""A state flows in, the parts of a page that show it flow out: one view a file."""

from whenwhy.server.views.about import About
from whenwhy.server.views.at_risk import AtRisk
from whenwhy.server.views.heat_map import HeatMap
from whenwhy.server.views.ranking import Ranking
from whenwhy.server.views.timeline import Timeline
from whenwhy.server.views.value_effect import ValueEffect

__all__ = ["About", "AtRisk", "HeatMap", "Ranking", "Timeline", "ValueEffect"]
