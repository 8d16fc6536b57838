"""What Ray must find in the environment when it is imported, by whomever: it reads some of it then, and never again."""

from __future__ import annotations

import os
import sys

#: Ray was there before it could be told anything, and does not know of tokens.
IMPORTED_BEFORE = "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token"

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # private data: nothing is reported outside
# Ray listens on every interface of a machine, and who reaches it can run code: nobody may without the token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Workers are the work: they do not stand back behind every other process of the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
