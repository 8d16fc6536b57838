"""run(task, keys): one loop over shards, inline or by Ray actors. Knows no attribution."""

from whenwhy.engine.progress import Progress
from whenwhy.engine.run import Task, Workers, run

__all__ = ["Progress", "Task", "Workers", "run"]
