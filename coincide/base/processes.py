"""Processes that end with the process that started them, even if that is killed."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)  # loaded here, because a forked child must not load libraries


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends; only on Linux.

    Args:
        number: of the signal.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, number)
