"""A session flows in, the views of the Quality page flow out; quality.html lays them out."""

from __future__ import annotations

from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views import About, Agreement, Completeness, DataQuality, Leaks, Provenance, Subgroups


def quality(session: Session) -> list[View]:
    """Quality: what to know before believing any other page."""
    choices = session.version.choices
    return [
        About(choices, session.version.name),
        Completeness(),
        Provenance(session.version.store.version.name),
        Agreement(choices, session.choose_feature),
        DataQuality(choices, session.choose_feature),
        Leaks(choices),
        Subgroups(choices),
    ]
