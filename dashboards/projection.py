"""A session flows in, the views of the Projection page flow out; projection.html lays them out."""

from __future__ import annotations

from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views.about import About
from whenwhy.server.views.projection import Projection
from whenwhy.server.views.selected_differences import SelectedDifferences


def projection(session: Session) -> list[View]:
    """Projection: predictions in the plane, close where the same codes carry them."""
    version = session.version
    return [
        About(version.choices, version.name),
        Projection(version.choices, version.answers, lambda members: session.act("lasso", {"members": members})),
        SelectedDifferences(version.choices),
    ]
