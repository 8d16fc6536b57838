"""What a worker sets of its own process before the first shard."""

from __future__ import annotations

import ctypes
import resource
import sys

#: mallopt's numbers of two settings of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

#: Arrays up to this size are cut from memory that the process keeps; so much of it may lie free at its end.
KEPT_ARRAY_BYTES, KEPT_FREE_BYTES = 1 << 25, 1 << 28


def peak_bytes() -> int:
    """The most memory that this process ever had.

    Example:
        >>> peak_bytes() > 1_000_000
        True
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak_bytes() -> int:
    """The most GPU memory that this process ever held, 0 where it uses none.

    Example:
        >>> device_peak_bytes() >= 0
        True
    """
    torch = sys.modules.get("torch")  # whoever has not imported it holds none
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())


def keep_freed_memory() -> bool:
    """True if freed arrays now serve the next ones, False where the C library is another than GNU's.

    Otherwise each large array comes from the system anew, which clears it page by page when it is first
    written: a fifth of the time of a shard whose arrays live for some milliseconds.

    Example:
        >>> keep_freed_memory() == sys.platform.startswith("linux")
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(set_option(_M_MMAP_THRESHOLD, KEPT_ARRAY_BYTES) and set_option(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES))
