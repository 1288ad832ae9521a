"""How a training process holds its memory.

A step frees and asks for the same large blocks over and over. glibc hands those of more than a threshold back to the
system each time, and the pages come back one fault after another: about a seventh of a step's time on the CPU. A
process that trains may as well keep them.
"""

from __future__ import annotations

import ctypes

# Numbers of mallopt's parameters in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes at the heap's top, and of a block, that are kept


def keep_freed() -> bool:
    """Tells the C library to keep freed blocks for this process; False where it is not glibc, and all is as it was."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, KEPT))
