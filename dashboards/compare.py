"""A session flows in, the views of the Compare page flow out; compare.html lays them out."""

from __future__ import annotations

from whenwhy.server.charts import TimeFrame
from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views import (
    About,
    AtRisk,
    CourseDifference,
    Differences,
    HeatMap,
    Pairing,
    Timeline,
    ValueEffect,
)


def compare(session: Session) -> list[View]:
    """Compare: where and when the contributions of two cohorts differ."""
    choices = session.version.choices
    frame = TimeFrame()
    return [
        About(choices, session.version.name),
        Pairing(choices),
        Differences(choices, session.choose_feature),
        HeatMap(choices, frame, session.mark, difference=True),
        AtRisk(choices, frame, with_reference=True),
        Timeline(choices, frame, session.mark),
        CourseDifference(choices, frame),
        ValueEffect(choices, session.mark),
    ]
