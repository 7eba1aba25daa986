# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What tests look into the native core by (probes.h). No wheel holds it: setup.py says when it is
built. Each function runs the instruction set that `_native` runs.
"""

from libc.stdint cimport int64_t, uint32_t
from libcpp cimport bool

from fastrank._native cimport _catalog_of, _forced
from kernels cimport *

import numpy as np

from fastrank import _native


cdef extern from "philox.h" namespace "fastrank" nogil:
    cdef struct Block:
        uint32_t word[4]
    Block c_philox "fastrank::philox4x32_10"(Block counter, uint32_t key0, uint32_t key1)


cdef extern from "elementary.h" namespace "fastrank" nogil:
    double c_exp "fastrank::exp"(double x)
    double c_log "fastrank::log"(double x)
    double c_log1p "fastrank::log1p"(double x)


cdef extern from "probes.h" namespace "fastrank" nogil:
    int64_t c_force_chunk_panels "fastrank::force_chunk_panels"(Forced*, int64_t)
    int64_t c_force_few_items "fastrank::force_few_items"(Forced*, int64_t)
    Code c_count_stops "fastrank::count_stops"(
        const Catalog&, const Request&, float, int64_t, int64_t*, int64_t*)
    Code c_estimate_all "fastrank::estimate_all"(
        const Catalog&, const Request&, float*, float*, bool*, int64_t*)
    Code c_error_bound "fastrank::error_bound"(
        const Catalog&, const Request&, double, const double*, int64_t, double*, double*, double*,
        bool*, int64_t*)
    Code c_bound_all "fastrank::bound_all"(
        const Catalog&, const Request&, double, float, float*, double*, bool*, bool*, int64_t*)
    void c_upper_weights "fastrank::upper_weights"(const float*, int64_t, float, float, float*)


def isa_names():
    """Names of the builds that this CPU can run, best last."""
    return tuple([c_isa_name(i).decode() for i in range(kIsaCount) if c_isa_name(i) != NULL])


def set_chunk_panels(int64_t count):
    """Chunks of `count` panels, 0 for the chunk law. Returns the previous value."""
    return c_force_chunk_panels(_forced(), count)


def set_few_items(int64_t count):
    """Codes are used from `count` eligible items on, 0 for where they pay. Returns the previous
    value.
    """
    return c_force_few_items(_forced(), count)


def stops(packed, const float[::1] query, float reference, int64_t row):
    """At how many panels a scan for scores above `reference` stops, if equal ones count as above up
    to this row.
    """
    cdef const Catalog* catalog = _catalog_of(packed)
    cdef Request request = _request(packed, query, None)
    cdef int64_t where = 0, count = 0
    cdef Code code
    with nogil:
        code = c_count_stops(catalog[0], request, reference, row, &count, &where)
    _check(code)
    return count


def estimates(packed, const float[::1] query, const float[::1] bias):
    """(estimates, upper bounds) of all scores by codes, float32 (n_items,) each.

    None where codes cannot be used: scores near the ends of the float32 range.
    """
    cdef const Catalog* catalog = _catalog_of(packed)
    cdef Request request = _request(packed, query, bias)
    cdef int64_t where = 0
    cdef bool usable = False
    cdef Code code
    result = np.zeros((2, _room(catalog)), np.float32)
    cdef float[:, ::1] out = result
    with nogil:
        code = c_estimate_all(catalog[0], request, &out[0, 0], &out[1, 0], &usable, &where)
    _check(code)
    return tuple(result[:, :catalog.n_items]) if usable else None


def weight_bounds(packed, const float[::1] query, double temperature, float reference):
    """(bounds of all weights, float32 (n_items,); of their sum; whether linear).

    None where codes cannot be used.
    """
    cdef const Catalog* catalog = _catalog_of(packed)
    cdef Request request = _request(packed, query, None)
    cdef int64_t where = 0
    cdef bool usable = False, linear = False
    cdef double total = 0.0
    cdef Code code
    result = np.zeros(_room(catalog), np.float32)
    cdef float[::1] out = result
    with nogil:
        code = c_bound_all(catalog[0], request, temperature, reference, &out[0], &total, &linear,
                           &usable, &where)
    _check(code)
    return (result[:catalog.n_items], total, linear) if usable else None


def error_bound(packed, const float[::1] query, double temperature, const double[::1] sums,
                int64_t n_heavy):
    """(bound, noting, window) of ErrorLaw for sums (mass, scaled, variance, cut).

    None where codes cannot be used.
    """
    cdef const Catalog* catalog = _catalog_of(packed)
    cdef Request request = _request(packed, query, None)
    cdef int64_t where = 0
    cdef bool usable = False
    cdef double bound = 0.0, noting = 0.0, window = 0.0
    cdef Code code
    _room(catalog)
    if sums.shape[0] != 4:
        raise ValueError(f"sums: expected 4, got {sums.shape[0]}")
    with nogil:
        code = c_error_bound(catalog[0], request, temperature, &sums[0], n_heavy, &bound, &noting,
                             &window, &usable, &where)
    _check(code)
    return (bound, noting, window) if usable else None


cdef Request _request(packed, const float[::1] query, const float[::1] bias) except *:
    """Of all items."""
    _use_the_same_isa()
    cdef const Catalog* catalog = _catalog_of(packed)
    if query.shape[0] != packed.query_length:
        raise ValueError("query: wrong length")
    if bias is not None and bias.shape[0] != catalog.n_items:
        raise ValueError("bias: wrong length")
    cdef const float* biases = NULL
    if bias is not None:
        biases = &bias[0]
    return Request(&query[0], biases, NULL, catalog.n_items, NULL, NULL, 0)


cdef int64_t _room(const Catalog* catalog) except -1:
    """For a number an item, spare lanes included, by codes."""
    if catalog.quantised.codes == NULL:
        raise ValueError("storage: there are no codes")
    return (catalog.n_items + kLanes - 1) // kLanes * kLanes


cdef int _check(Code code) except -1:
    if code != kOk:
        raise ValueError(f"refused: code {<int>code} of kernels.h")
    return 0


cdef int _use_the_same_isa() except -1:
    if not c_isa_select(_native.isa().encode()):
        raise ValueError(f"isa: {_native.isa()} is not here")
    return 0


def upper_weights(const float[::1] uppers, float reference, float inv_temperature):
    """Upper bounds of weights, (m,), from those of m scores, m a multiple of 16."""
    if uppers.shape[0] % kLanes:
        raise ValueError("uppers: not a whole number of panels")
    _use_the_same_isa()
    result = np.empty(uppers.shape[0], np.float32)
    cdef float[::1] out = result
    if uppers.shape[0]:
        c_upper_weights(
            &uppers[0], uppers.shape[0] // kLanes, reference, inv_temperature, &out[0])
    return result


def philox4x32_10(counter, key):
    """Four words from a counter of four and a key of two."""
    cdef Block block
    for i in range(4):
        block.word[i] = counter[i]
    block = c_philox(block, key[0], key[1])
    return block.word[0], block.word[1], block.word[2], block.word[3]


def elementary(name, const double[::1] x):
    """exp, log or log1p of float64 values, as the kernels compute them."""
    result = np.empty(x.shape[0], np.float64)
    cdef double[::1] out = result
    cdef int64_t i
    cdef int function = ("exp", "log", "log1p").index(name)
    for i in range(x.shape[0]):
        if function == 0:
            out[i] = c_exp(x[i])
        elif function == 1:
            out[i] = c_log(x[i])
        else:
            out[i] = c_log1p(x[i])
    return result
