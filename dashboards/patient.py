"""A session flows in, the views of the Patient page flow out; patient.html lays them out."""

from __future__ import annotations

from bokeh.models import Range1d

from whenwhy.server.patient import Chosen
from whenwhy.server.session import Session
from whenwhy.server.view import View
from whenwhy.server.views.about import About
from whenwhy.server.views.patient_events import PatientEvents
from whenwhy.server.views.patient_head import PatientHead
from whenwhy.server.views.patient_list import PatientList
from whenwhy.server.views.patient_sum import PatientSum
from whenwhy.server.views.patient_what_if import PatientWhatIf


def patient(session: Session) -> list[View]:
    """Patient: one record, what each of its values contributed, and what if they were others."""
    choices, times = session.version.choices, Range1d(start=-1, end=0)

    def look() -> Chosen:
        return session.chosen

    return [
        About(choices, session.version.name),
        PatientList(choices, look),
        PatientHead(choices, look),
        PatientEvents(choices, look, times),
        PatientSum(choices, look),
        PatientWhatIf(choices, look, times, session.served),
    ]
