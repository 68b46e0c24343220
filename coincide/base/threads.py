"""Number of threads of numerical code. Importing this module does not import numba."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def threads() -> int:
    """Limit numba's loops in the calling thread to COINCIDE_THREADS, if set; return the number of threads they use.

    NUMBA_NUM_THREADS cannot be used for this: if it is set after numba was imported, the next
    compilation fails.
    """
    import numba

    count = numba.get_num_threads()
    limit = int(os.environ.get("COINCIDE_THREADS", count))
    if limit < count:
        numba.set_num_threads(limit)
    return min(limit, count)


def one_blas_thread() -> AbstractContextManager:
    """Context in which BLAS uses only the calling thread, for callers that run several threads themselves.

    BLAS threads also keep spinning after a product and take the cores from the loops that follow.
    """
    return _threadpool_controller().limit(limits=1, user_api="blas")


@cache
def _threadpool_controller():
    return ThreadpoolController()
