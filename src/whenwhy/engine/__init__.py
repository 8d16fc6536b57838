"""run(task, keys): one loop over shards, inline or by Ray actors. Knows no attribution."""

import whenwhy.engine.ray_settings  # noqa: F401 -- it speaks to whoever imports Ray later
from whenwhy.engine.progress import Progress
from whenwhy.engine.report import Report, reported
from whenwhy.engine.run import Pool, Task, Workers, kept_pool, run
from whenwhy.engine.threads import worker_threads

__all__ = ["Pool", "Progress", "Report", "Task", "Workers", "kept_pool", "reported", "run", "worker_threads"]
