"""A session flows in, the views of the Overview page flow out; overview.html lays them out."""

from __future__ import annotations

from bokeh.models import CustomJS

from whenwhy.server.session import Session
from whenwhy.server.time_scale import TimeFrame
from whenwhy.server.view import View
from whenwhy.server.views import About, AtRisk, Controls, HeatMap, Ranking, Timeline, ValueEffect

#: Where a feature has no time, its value effect takes the place beside the ranking.
LAYOUT = """
const heat_map = Bokeh.documents[0].get_model_by_name("heat_map")
document.querySelector(".charts").classList.toggle("without-time", heat_map !== null && !heat_map.visible)
"""


def overview(session: Session) -> list[View]:
    """Overview: which features carry the predictions, and when which of their values mattered."""
    session.document.js_on_event("document_ready", CustomJS(code=LAYOUT))
    choices = session.version.choices
    frame = TimeFrame()

    def choose(feature: str) -> None:
        session.choose(feature=feature)

    heat_map = HeatMap(choices, frame)
    heat_map.roots["heat_map"].js_on_change("visible", CustomJS(code=LAYOUT))
    return [
        About(session.version.name),
        Controls(session),
        Ranking(choices, choose),
        heat_map,
        AtRisk(frame),
        Timeline(choices, frame),
        ValueEffect(choices),
    ]
