"""A state flows in, the parts of a page that show it flow out: one view a file."""

from whenwhy.server.views.about import About
from whenwhy.server.views.agreement import Agreement
from whenwhy.server.views.at_risk import AtRisk
from whenwhy.server.views.calibration import Calibration
from whenwhy.server.views.completeness import Completeness
from whenwhy.server.views.confusion import Confusion
from whenwhy.server.views.course_difference import CourseDifference
from whenwhy.server.views.data_quality import DataQuality
from whenwhy.server.views.differences import Differences
from whenwhy.server.views.groups import Groups
from whenwhy.server.views.heat_map import HeatMap
from whenwhy.server.views.leaks import Leaks
from whenwhy.server.views.over_time import OverTime
from whenwhy.server.views.pairing import Pairing
from whenwhy.server.views.pairs import Pairs
from whenwhy.server.views.partners import Partners
from whenwhy.server.views.percentiles import Percentiles
from whenwhy.server.views.provenance import Provenance
from whenwhy.server.views.ranking import Ranking
from whenwhy.server.views.scores import ScoreDistribution
from whenwhy.server.views.sparklines import Sparklines
from whenwhy.server.views.subgroups import Subgroups
from whenwhy.server.views.timeline import Timeline
from whenwhy.server.views.value_effect import ValueEffect

__all__ = [
    "About",
    "Agreement",
    "AtRisk",
    "Calibration",
    "Completeness",
    "Confusion",
    "CourseDifference",
    "DataQuality",
    "Differences",
    "Groups",
    "HeatMap",
    "Leaks",
    "OverTime",
    "Pairing",
    "Pairs",
    "Partners",
    "Percentiles",
    "Provenance",
    "Ranking",
    "ScoreDistribution",
    "Sparklines",
    "Subgroups",
    "Timeline",
    "ValueEffect",
]
