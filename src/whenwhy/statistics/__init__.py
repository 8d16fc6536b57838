"""Attributions flow in, cells flow out: sums per feature value, time, class and cohort."""

from whenwhy.statistics.aggregate import Cells, aggregate_cells
from whenwhy.statistics.time_axis import BEFORE_PREDICTION, TimeAxis

__all__ = ["BEFORE_PREDICTION", "Cells", "TimeAxis", "aggregate_cells"]
