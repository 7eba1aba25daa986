"""Benchmarks of fastrank against its peers, on one thread unless two are what is measured.

`asv` finds the ``time_``, ``peakmem_`` and ``track_`` functions; ``figures.py``, ``report.py`` and
``profile_rank.py`` beside this package are built from the same parts:

- `workloads`: vectors, a query and a temperature, from a seed or from real factors
- `calls`: one ranking by us or by a peer, as a function without arguments, its result checked;
  `scores`: what is ranked by besides dot products; `twin`: our pass in Numba
- `timing`: calls measured in turns; `memory`: what a call or an `open` adds to the process
- `comparisons`: which contenders are measured together; `jobs`: those, as values by name, each in
  a fresh process

Importing this package pins every thread pool to one thread. That works only before NumPy is
imported, so scripts import it first, and ``asv.conf.json`` sets the same variables.
"""

import os
from functools import cache

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

for _name in _THREAD_VARIABLES:
    os.environ.setdefault(_name, "1")


@cache
def require_one_thread() -> None:
    """Refuse to measure where a thread pool was started with more than one thread.

    Looked at before the first workload is made: later there may be threads that a benchmark asked
    for itself.
    """
    pinned = all(os.environ[name] == "1" for name in _THREAD_VARIABLES)
    # Pools are sized when their library is loaded, so the variables may have come too late.
    if not pinned or len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(
            f"more than one thread: set {', '.join(_THREAD_VARIABLES)} to 1 before Python starts"
        )
