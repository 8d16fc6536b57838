"""Named sources of MEDS data sets: one file each, registered by a decorator."""

from whenwhy.events.sources.registry import Source, import_source, registered_sources, source

__all__ = ["Source", "import_source", "registered_sources", "source"]
