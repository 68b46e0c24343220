"""How inner loops are compiled with numba, and how they read float16.

Loops are compiled if numpy would need several passes over memory. Each computes the same numbers for
any number of threads: a thread handles whole rows, clusters or columns, and sums across threads are
sums of integers.

Compiled code is cached on disk, and only a change in a loop's file invalidates it. After a change in this
file, delete the caches (*.nbi and *.nbc, in `__pycache__` or NUMBA_CACHE_DIR) of the loops that use it.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FAST_MATH = {"reassoc", "nsz", "contract"}

serial = numba.njit(cache=True, nogil=True, fastmath=_FAST_MATH)
parallel = numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST_MATH)
# For loops whose values are never NaN: maxima are computed with vector instructions.
parallel_finite = numba.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST_MATH | {"nnan"})
# For steps of such loops; as calls they would be a tenth slower.
inlined_finite = numba.njit(cache=True, nogil=True, inline="always", fastmath=_FAST_MATH | {"nnan"})


def bits(x: np.ndarray) -> np.ndarray:
    """View x as the loops take it: float32 as it is, float16 as its uint16 bits (numba has no float16 on a CPU)."""
    return x.view(np.uint16) if x.dtype == np.float16 else x


@intrinsic
def _to_float32(typing_context, value):
    if value == types.uint16:

        def convert(context, builder, signature, arguments):
            half = builder.bitcast(arguments[0], ir.HalfType())
            return builder.fpext(half, ir.FloatType())
    else:

        def convert(context, builder, signature, arguments):
            return arguments[0]

    return types.float32(value), convert


# float32 of a float32, or of the bits of a float16: one vector instruction on any x86 since 2013.
# Any: numba itself passes the first argument, which a type checker cannot know.
to_float32: Any = _to_float32
