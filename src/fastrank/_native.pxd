# What ext/_probes.pyx, of the tests alone, sees of ext/_native.pyx.

from kernels cimport Catalog, Forced

cdef const Catalog* _catalog_of(packed) except NULL
cdef Forced* _forced() noexcept
