"""How much memory this process has needed."""

import re
import sys
from pathlib import Path

import psutil


def peak_process_bytes() -> int:
    """The most that this process ever held in RAM, its starter not counted."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Rather than ru_maxrss, in which a process inherits what the one that started it had held.
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        if (found := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)) is not None:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
