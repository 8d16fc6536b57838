"""A session flows in, the views of the Predictions page flow out; predictions.html lays them out."""

from __future__ import annotations

from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views import About, Calibration, Confusion, OverTime, ScoreDistribution


def predictions(session: Session) -> list[View]:
    """Predictions: whether they come true, how classes are told apart, and how both run over the calendar."""
    choices = session.version.choices
    return [
        About(choices, session.version.name),
        Calibration(choices),
        ScoreDistribution(choices, session.mark),
        OverTime(choices, session.mark),
        Confusion(choices),
    ]
