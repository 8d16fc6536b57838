"""Named sources of MEDS data sets: one file each, registered by a decorator."""

from whenwhy.events.sources.registry import (
    NOT_RECORDED,
    Source,
    import_source,
    named_source,
    registered_sources,
    source,
)

__all__ = ["NOT_RECORDED", "Source", "import_source", "named_source", "registered_sources", "source"]
