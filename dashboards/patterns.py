"""A session flows in, the views of the Patterns page flow out; patterns.html lays them out."""

from __future__ import annotations

from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views import About, Groups, Partners


def patterns(session: Session) -> list[View]:
    """Patterns: what groups of codes carry, and which features contribute together."""
    choices = session.version.choices
    return [
        About(choices, session.version.name),
        Groups(choices, session.choose_feature, session.enter_group),
        Partners(choices, session.choose_feature),
    ]
