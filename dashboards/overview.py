"""A session flows in, the views of the Overview page flow out; overview.html lays them out."""

from __future__ import annotations

from whenwhy.server.charts import TimeFrame
from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views import About, AtRisk, HeatMap, Pairs, Percentiles, Ranking, Sparklines, Timeline, ValueEffect


def overview(session: Session) -> list[View]:
    """Overview: which features carry the predictions, and when which of their values mattered."""
    choices = session.version.choices
    frame = TimeFrame()
    ranking = Ranking(choices, session.choose_feature)
    return [
        About(choices, session.version.name),
        HeatMap(choices, frame, session.mark),
        AtRisk(choices, frame),
        Timeline(choices, frame, session.mark),
        Percentiles(choices, frame),
        Pairs(choices),
        ValueEffect(choices, session.mark),
        ranking,
        Sparklines(ranking),
    ]
