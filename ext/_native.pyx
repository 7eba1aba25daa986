# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Between Python and the kernels of kernels.h: checks arrays, allocates outputs, releases the
GIL around exactly one call, turns codes into exceptions. No decision is taken here.

Typed memoryviews check dtype, dimensions and contiguity and take read-only maps; the callers in
fastrank.catalog give them what they ask for. `PackedCatalog` keeps its arrays alive; nothing else
outlives a call. _native.pxd is what tests' own module, _probes.pyx, sees of this one.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.vector cimport vector

from kernels cimport *

import os
import threading

import numpy as np


LANES = kLanes
DETERMINISTIC, GUMBEL, SEQUENTIAL, EPSILON_GREEDY, UNIFORM, TABLE = range(6)  # PolicyKind


cdef enum:
    GUMBEL_KIND = 1
    TABLE_KIND = 5

# Signals are handled on the main thread, and calls on no other have anything to ask.
cdef unsigned long _main_thread = threading.main_thread().ident


def _after_fork():
    global _main_thread
    _main_thread = PyThread_get_thread_ident()


os.register_at_fork(after_in_child=_after_fork)


cdef Poll _poll(PyObject** raised) noexcept:
    """For a call on this thread; *raised is where it leaves the exception that ended the call."""
    raised[0] = NULL
    if PyThread_get_thread_ident() != _main_thread:
        return Poll(NULL, NULL)
    return Poll(_signalled, raised)


cdef bool _signalled(void* raised) noexcept with gil:
    """Runs the handlers of signals that have come; whether one of them raised."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        Py_INCREF(error)
        (<PyObject**>raised)[0] = <PyObject*>error
        return True
    return False


cdef int _reraise(PyObject* raised) except -1:
    error = <object>raised
    Py_DECREF(error)
    raise error


OPS = (
    "copy", "negate", "abs", "sqrt", "exp", "log", "log1p", "sigmoid", "not",
    "add", "subtract", "multiply", "divide", "power", "min", "max",
    "less", "less_equal", "equal", "not_equal", "and", "or", "select",
)  # Op
REGISTERS = kRegisters
OPERANDS = ("register", "dot", "constant", "column", "flags")  # OperandKind, 65536 times its number
_FAULTS = ("nan", "more than 1e38", "less than -1e38")  # Fault


cdef class Function:
    """A function of scores (kernels.h), of a catalog of n_items.

    steps: int32 (s, 5), op, to and three operands each; constants: float32 (c,); columns: of float32
    (16 * n_panels,), flags: of uint16 (n_panels,) each. Or `code`, the address of machine code for
    Function.run, and what it is handed, `context`: the addresses of `params` and of all columns.
    refuse(position, what): words for an item whose score it is.
    """

    cdef CFunction function
    cdef vector[Step] steps
    cdef vector[float] constants
    cdef vector[const float*] columns
    cdef vector[const uint16_t*] flags
    cdef vector[const void*] context
    cdef object kept, refuse
    cdef int64_t n_items

    def __init__(self, int64_t n_items, refuse, const float[::1] constants, list columns, list flags,
                 const int32_t[:, ::1] steps=None, uint64_t code=0):
        cdef int64_t n_panels = (n_items + kLanes - 1) // kLanes, i, j
        cdef const float[::1] column
        cdef const uint16_t[::1] words
        cdef Step step
        self.n_items = n_items
        self.refuse = refuse
        self.kept = constants, columns, flags
        for column in columns:
            if column.shape[0] != kLanes * n_panels:
                raise ValueError("columns: shape does not fit the panels")
            self.columns.push_back(&column[0])
        for words in flags:
            if words.shape[0] != n_panels:
                raise ValueError("flags: shape does not fit the panels")
            self.flags.push_back(&words[0])
        self.function = CFunction(NULL, 0, NULL, NULL, NULL, NULL, NULL)
        if code:
            self.context.push_back(_floats(constants) if constants.shape[0] else NULL)
            for i in range(<int64_t>self.columns.size()):
                self.context.push_back(self.columns[i])
            self.function.run = <void (*)(const void*, int64_t, int64_t, float*) noexcept><size_t>code
            self.function.context = self.context.data()
            return
        for i in range(constants.shape[0]):
            for j in range(kLanes):
                self.constants.push_back(constants[i])
        if steps is None or steps.shape[0] == 0 or steps.shape[1] != 5:
            raise ValueError("steps: wrong shape")
        for i in range(steps.shape[0]):
            step = Step(steps[i, 0], steps[i, 1], steps[i, 2], steps[i, 3], steps[i, 4])
            if not (0 <= step.op < kOpCount and -1 <= step.to < kRegisters):
                raise ValueError("steps: no such step")
            self._check(step.a)
            self._check(step.b)
            self._check(step.c)
            self.steps.push_back(step)
        self.function.steps = self.steps.data()
        self.function.n_steps = <int64_t>self.steps.size()
        self.function.constants = self.constants.data()
        self.function.columns = self.columns.data()
        self.function.flags = self.flags.data()

    cdef int _check(self, int32_t operand) except -1:
        cdef int64_t number = operand & 0xFFFF, most
        most = (
            kRegisters,
            1,
            <int64_t>self.constants.size() // kLanes,
            <int64_t>self.columns.size(),
            <int64_t>self.flags.size(),
        )[operand >> 16] if 0 <= operand >> 16 <= 4 else 0
        if number >= most:
            raise ValueError("steps: no such operand")
        return 0

    def values(self):
        """float32 (n_items,), by position: what it makes of dot products of 0, without biases."""
        cdef int64_t where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        result = np.empty(self.n_items, np.float32)
        cdef float[::1] out = result
        with nogil:
            code = c_values_of(self.function, self.n_items, poll, &out[0], &where)
        if code != kOk:
            _raise(code, where, None, None, raised, False, self)
        return result


cdef class PackedCatalog:
    """A catalog's arrays as the kernels want them.

    arrays: `panels`, or `codes`, `scales`, `vectors` and `columns` (fastrank.packing), and `bias`,
    float32 (16 * n_panels,), or None. meta: what to know of them. tolerance: for the error of a
    log-normaliser that is estimated from codes. rows: int64 (n_items,) and panel_rows: int64
    (n_panels,), or None for both.
    """

    cdef Catalog catalog
    cdef const float[:, :, ::1] panels
    cdef const uint8_t[:, :, :, ::1] codes
    cdef const float[::1] scales
    cdef const float[:, ::1] vectors
    cdef const float[:, ::1] columns
    cdef const float[::1] bias
    cdef const int64_t[::1] rows
    cdef const int64_t[::1] panel_rows
    cdef int64_t n_panels
    cdef bint is_given  # scores: GivenScores
    cdef readonly int64_t query_length  # with the zeros that the kernels want at its end

    def __init__(self, arrays, const float[::1] bias, int64_t n_items, int32_t dim,
                 meta, double max_bias, double tolerance, const int64_t[::1] rows=None,
                 const int64_t[::1] panel_rows=None):
        cdef int64_t groups = (dim + 3) // 4
        cdef Quantised quantised
        self.n_panels = (n_items + kLanes - 1) // kLanes
        self.catalog.panels = NULL
        self.catalog.vectors = NULL
        self.query_length = dim
        quantised.codes = NULL
        if "panels" in arrays:
            self.panels = arrays["panels"]
            if (self.panels.shape[0] != self.n_panels or self.panels.shape[1] != dim
                    or self.panels.shape[2] != kLanes):
                raise ValueError("panels: shape does not fit n_items")
            self.catalog.panels = &self.panels[0, 0, 0]
        else:
            self.codes = arrays["codes"]
            self.scales = arrays["scales"]
            self.vectors = arrays["vectors"]
            self.columns = arrays["columns"]
            if (self.codes.shape[0] != self.n_panels or self.codes.shape[1] != groups
                    or self.codes.shape[2] != kLanes or self.codes.shape[3] != 4
                    or self.scales.shape[0] != kLanes * self.n_panels
                    or self.vectors.shape[0] != kLanes * self.n_panels
                    or self.vectors.shape[1] != 4 * groups
                    or self.columns.shape[0] != 2 or self.columns.shape[1] != dim):
                raise ValueError("codes, scales, vectors, columns: shapes do not fit n_items")
            self.catalog.vectors = &self.vectors[0, 0]
            self.query_length = 4 * groups
            quantised.codes = &self.codes[0, 0, 0, 0]
            quantised.scales = &self.scales[0]
            quantised.center = &self.columns[0, 0]
            quantised.unit = &self.columns[1, 0]
            quantised.code_error = meta["code_error"]
            quantised.code_norm = meta["code_norm"]
            quantised.code_moment = meta["code_moment"]
            quantised.max_scale = meta["max_scale"]
            quantised.tolerance = tolerance
        if bias is not None and bias.shape[0] != kLanes * self.n_panels:
            raise ValueError("bias: shape does not fit the panels")
        self.bias = bias
        self.catalog.quantised = quantised
        self.catalog.bias = _floats(bias)
        self.catalog.dim = dim
        self.catalog.max_norm = meta["max_norm"]
        self.catalog.max_bias = max_bias
        self._set_items(n_items, rows, panel_rows)

    cdef int _set_items(self, int64_t n_items, const int64_t[::1] rows,
                        const int64_t[::1] panel_rows) except -1:
        if (rows is None) != (panel_rows is None) or rows is not None and (
                rows.shape[0] != n_items or panel_rows.shape[0] != self.n_panels):
            raise ValueError("rows: shape does not fit n_items")
        self.rows = rows
        self.panel_rows = panel_rows
        self.catalog.rows = NULL
        self.catalog.panel_rows = NULL
        if rows is not None:
            self.catalog.rows = &rows[0]
            self.catalog.panel_rows = &panel_rows[0]
        self.catalog.n_items = n_items

    def rank(self, const float[::1] query, int64_t k, int kind, double temperature,
             double epsilon, uint64_t seed, const float[::1] bias, const uint16_t[::1] eligible,
             int64_t n_eligible, int64_t threads=1, table=None, Function function=None,
             const uint16_t[::1] labels=None, int64_t n_labels=0):
        """(positions, scores, log_propensities, log_norm, log_norm_error, n_scored, from_table) of
        one ranking. table: the user's depths, reference and largest, for the kind TABLE.

        With labels, of the kind GUMBEL and without codes, two more: the masses of the eligible items that
        are not ranked, by label, float64 (n_labels,), and the score that they are relative to (kernels.h,
        "Labels"). labels: uint16 (16 * n_panels,), by position, each below n_labels.
        """
        cdef User user
        user.request = _request(self, query, bias, eligible, n_eligible, function)
        cdef double[::1] masses
        by_label = ()
        if labels is not None:
            _check_pass_by_label(self, labels, n_labels, np.array([kind], np.int32))
            user.request.labels = &labels[0]
            user.request.n_labels = n_labels
            by_label = np.zeros(n_labels), 0.0
            masses = by_label[0]
            user.out.label_masses = &masses[0]
        user.allowed = user.excluded = NULL  # `eligible` holds them
        user.n_allowed = user.n_excluded = 0
        user.policy = Policy(<PolicyKind>kind, temperature, epsilon, seed)
        if kind == TABLE_KIND:
            user.table = _table(self, table, bias)
        cdef int64_t row = 0, where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        result = _allocate(min(k, n_eligible), &user.out)
        with nogil:
            code = c_rank(self.catalog, &user, 1, k, threads, poll, &row, &where)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given, function)
        if user.out.count < min(k, n_eligible):  # a damaged catalog's numbers
            result = tuple(each[:user.out.count] for each in result)
        if labels is not None:
            by_label = by_label[0], user.out.label_reference
        return (*result, user.out.log_norm, user.out.log_norm_error, user.out.n_scored,
                user.out.from_table, *by_label)

    def rank_batch(self, const float[:, ::1] queries, int64_t k, const int32_t[::1] kinds,
                   const double[::1] temperatures, const double[::1] epsilons,
                   const uint64_t[::1] seeds, const float[:, ::1] bias, list excluded,
                   list allowed, int64_t threads, list tables=None, list functions=None,
                   const uint16_t[::1] labels=None, int64_t n_labels=0):
        """(positions, scores, log_propensities, log_norm, log_norm_error, counts, n_eligible,
        n_scored, from_table) of b rankings.

        bias: None, (1, n_items) for all users or (b, n_items). excluded, allowed: for each user
        the positions (int64) or None. tables: for each user its three parts, or None. functions: a
        Function or None for each, or None. The first three are (b, k), written
        up to each row's count alone. With labels, those of all users, as `rank`: masses (b, n_labels) and
        scores (b,) besides.
        """
        cdef int64_t b = queries.shape[0], i, row = 0, where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        cdef const int64_t[::1] filter
        if len(excluded) != b or len(allowed) != b:
            raise ValueError("excluded, allowed: wrong length")
        if bias is not None and bias.shape[0] != 1 and bias.shape[0] != b:
            raise ValueError("bias: wrong length")
        if tables is not None and len(tables) != b:
            raise ValueError("tables: wrong length")
        if functions is not None and len(functions) != b:
            raise ValueError("functions: wrong length")
        if not kinds.shape[0] == temperatures.shape[0] == epsilons.shape[0] == seeds.shape[0] == b:
            raise ValueError("policies, seeds: wrong length")
        if k > self.catalog.n_items:
            raise ValueError("k: more places than items")
        result = (
            np.zeros((b, k), np.int64),  # what is past the counts can be looked up, too
            np.empty((b, k), np.float32),
            np.empty((b, k), np.float64),
            np.empty(b, np.float64),
            np.empty(b, np.float64),
            np.empty(b, np.int64),
            np.empty(b, np.int64),
            np.empty(b, np.int64),
            np.empty(b, np.bool_),
        )
        cdef int64_t[:, ::1] positions = result[0]
        cdef float[:, ::1] scores = result[1]
        cdef double[:, ::1] log_propensities = result[2]
        cdef double[::1] log_norm = result[3], log_norm_error = result[4]
        cdef int64_t[::1] counts = result[5], n_eligible = result[6], n_scored = result[7]
        cdef uint8_t[::1] from_table = result[8].view(np.uint8)
        if labels is not None:
            _check_pass_by_label(self, labels, n_labels, kinds)
            result = (*result, np.zeros((b, n_labels)), np.zeros(b))
        cdef double[:, ::1] masses = result[9] if labels is not None else None
        cdef double[::1] references = result[10] if labels is not None else None
        cdef vector[User] users
        cdef User user
        for i in range(b):
            user.request = _request(
                self, queries[i], None if bias is None else bias[i if bias.shape[0] == b else 0],
                None, self.catalog.n_items, None if functions is None else functions[i])
            if labels is not None:
                user.request.labels = &labels[0]
                user.request.n_labels = n_labels
                user.out.label_masses = &masses[i, 0]
            filter = excluded[i]
            _check_positions("excluded", filter, self.catalog.n_items)
            user.excluded = _positions(filter)
            user.n_excluded = 0 if filter is None else filter.shape[0]
            filter = allowed[i]
            _check_positions("allowed", filter, self.catalog.n_items)
            user.allowed = _positions(filter)
            user.n_allowed = 0 if filter is None else filter.shape[0]
            user.policy = Policy(<PolicyKind>kinds[i], temperatures[i], epsilons[i], seeds[i])
            if kinds[i] == TABLE_KIND:
                user.table = _table(self, tables[i], bias)
            user.out.positions = &positions[i, 0]
            user.out.scores = &scores[i, 0]
            user.out.log_propensities = &log_propensities[i, 0]
            users.push_back(user)
        with nogil:
            code = c_rank(self.catalog, users.data(), b, k, threads, poll, &row, &where)
        if code == kInterrupted:
            _reraise(raised)
        if code != kOk and self.is_given:
            _refuse_score(code, f"row {row}, column {where}", queries[row][where])
        if code != kOk:
            try:
                _raise(code, where, queries[row],
                       None if bias is None else bias[row if bias.shape[0] == b else 0], NULL,
                       False, None if functions is None else functions[row])
            except ValueError as error:  # it speaks of one user's request
                raise ValueError(f"queries: row {row}: {error}") from None
        for i in range(b):
            log_norm[i] = users[i].out.log_norm
            log_norm_error[i] = users[i].out.log_norm_error
            counts[i] = users[i].out.count
            n_eligible[i] = users[i].request.n_eligible
            n_scored[i] = users[i].out.n_scored
            from_table[i] = users[i].out.from_table
            if labels is not None:
                references[i] = users[i].out.label_reference
        return result

    def check(self, const float[:, ::1] queries):
        """A ValueError for the first query that cannot be ranked for, before any work is done."""
        cdef int64_t i, where = 0
        cdef Code code
        cdef Request request
        cdef Largest largest
        for i in range(queries.shape[0]):
            request = _request(self, queries[i], None, None, self.catalog.n_items)
            code = c_check_request(self.catalog, request, &where, &largest)
            if code != kOk:
                try:
                    _raise(code, where, queries[i], None, NULL)
                except ValueError as error:
                    raise ValueError(f"queries: row {i}: {error}") from None

    def make_tables(self, const float[:, ::1] queries, const double[::1] temperatures,
                    int64_t threads=1, list functions=None):
        """(depths uint32 (b, cells), references and largest float64 (b, 2)): a table for each query at
        its temperature."""
        cdef int64_t b = queries.shape[0], i, row = 0, where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        cdef vector[Request] requests
        if self.is_given or temperatures.shape[0] != b or (
                functions is not None and len(functions) != b):
            raise ValueError("temperatures, functions: wrong length")
        depths = np.empty((b, c_table_size(self.catalog.n_items)), np.uint32)
        tops = np.empty((b, 2), np.float64)
        if b == 0:
            return depths, tops
        cdef uint32_t[:, ::1] into = depths
        cdef double[:, ::1] top = tops
        for i in range(b):
            requests.push_back(_request(
                self, queries[i], None, None, self.catalog.n_items,
                None if functions is None else functions[i]))
        with nogil:
            code = c_make_tables(
                self.catalog, requests.data(), &temperatures[0], b, threads, poll, &into[0, 0],
                &top[0, 0], &row, &where)
        if code == kInterrupted:
            _reraise(raised)
        if code != kOk:
            try:
                _raise(code, where, queries[row], None, NULL, False,
                       None if functions is None else functions[row])
            except ValueError as error:
                raise ValueError(f"queries: row {row}: {error}") from None
        return depths, tops

    def log_propensities(self, const float[::1] query, const int64_t[::1] positions, int kind,
                         double temperature, double epsilon, const float[::1] bias,
                         const uint16_t[::1] eligible, int64_t n_eligible,
                         Function function=None):
        """Conditional log-propensities (k,) of the items at `positions`; -1 is unknown."""
        cdef Request request = _request(self, query, bias, eligible, n_eligible, function)
        cdef Policy policy = Policy(<PolicyKind>kind, temperature, epsilon, 0)
        cdef int64_t count = positions.shape[0], where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        _check_positions("positions", positions, self.catalog.n_items, -1)
        result = np.empty(count, np.float64)
        if count == 0:
            return result
        cdef double[::1] out = result
        with nogil:
            code = c_log_propensities(
                self.catalog, request, policy, &positions[0], count, poll, &out[0], &where)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given, function)
        return result

    def rank_flat_tail(self, const float[::1] query, int64_t k, double temperature, double factor,
                       uint64_t seed, const int64_t[::1] candidates, const float[::1] known,
                       const float[::1] bias, const uint16_t[::1] eligible,
                       int64_t n_eligible):
        """As `rank`, with two more at the end: is_candidate bool (k,) and the tail's log-weight.

        candidates: their positions; known: their scores, or None for the catalog's.
        """
        cdef Request request = _request(self, query, bias, eligible, n_eligible)
        cdef Candidates found = _candidates(self, candidates, known, factor)
        cdef Ranking out
        cdef FlatTail tail
        cdef int64_t where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        k = min(k, n_eligible)
        result = _allocate(k, &out)
        is_candidate = np.empty(k, np.bool_)
        tail.is_candidate = <bool*>_data(is_candidate)
        with nogil:
            code = c_rank_flat_tail(
                self.catalog, request, found, temperature, seed, k, poll, &out, &tail, &where)
        if code == kNoCandidate:
            _refuse_candidate(where, candidates, eligible)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given)
        return (*result, out.log_norm, out.log_norm_error, out.n_scored, False, is_candidate,
                tail.log_weight)

    def flat_tail_log_propensities(self, const float[::1] query, const int64_t[::1] positions,
                                   double temperature, double factor,
                                   const int64_t[::1] candidates, const float[::1] known,
                                   const float[::1] bias, const uint16_t[::1] eligible,
                                   int64_t n_eligible):
        """As `log_propensities`; candidates as `rank_flat_tail`."""
        cdef Request request = _request(self, query, bias, eligible, n_eligible)
        cdef Candidates found = _candidates(self, candidates, known, factor)
        cdef int64_t count = positions.shape[0], where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        _check_positions("positions", positions, self.catalog.n_items, -1)
        result = np.empty(count, np.float64)
        if count == 0:
            return result
        cdef double[::1] out = result
        with nogil:
            code = c_flat_tail_log_propensities(
                self.catalog, request, found, temperature, &positions[0], count, poll, &out[0],
                &where)
        if code == kNoCandidate:
            _refuse_candidate(where, candidates, eligible)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given)
        return result

    def scores(self, const float[::1] query, const float[::1] bias, Function function=None):
        """float32 scores (n_items,) in catalog order."""
        cdef Request request = _request(self, query, bias, None, self.catalog.n_items, function)
        cdef int64_t where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        result = np.empty(self.catalog.n_items, np.float32)
        cdef float[::1] out = result
        with nogil:
            code = c_score_all(self.catalog, request, poll, &out[0], &where)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given, function)
        return result

    def over_scores(self):
        """GivenScores of the same items: to rank by what `scores` gives."""
        return GivenScores(self.catalog.n_items, self.rows, self.panel_rows, known=True)

    def scores_at(self, const float[::1] query, const int64_t[::1] positions,
                  const float[::1] bias, Function function=None):
        """float32 scores (m,) of the items at `positions`, in that order, as `scores` has them."""
        cdef Request request = _request(self, query, bias, None, self.catalog.n_items, function)
        cdef int64_t count = positions.shape[0], where = 0
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        _check_positions("positions", positions, self.catalog.n_items)
        result = np.empty(count, np.float32)
        if count == 0:
            return result
        cdef float[::1] out = result
        with nogil:
            code = c_scores_at(
                self.catalog, request, &positions[0], count, poll, &out[0], &where)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given, function)
        return result

    def label_masses(self, const float[::1] query, double temperature, const float[::1] bias,
                     const uint16_t[::1] eligible, const int32_t[::1] labels, int64_t n_labels,
                     Function function=None):
        """(values float64, references float64, counts int64), (n_labels,) each: of every label the sum
        of exp((score - reference) / temperature) over its eligible items, relative to the highest of
        their scores, and how many there are; 0 of each where there are none.

        labels: int32 (n_items,), by position; negative where an item has none. temperature: may be
        infinite.
        """
        cdef Request request = _request(
            self, query, bias, eligible, self.catalog.n_items, function)
        cdef int64_t where = 0, i
        cdef PyObject* raised
        cdef Poll poll = _poll(&raised)
        cdef Code code
        cdef vector[LabelMass] masses
        if n_labels < 0 or labels.shape[0] != self.catalog.n_items:
            raise ValueError("labels: wrong length")
        _check_labels(labels, n_labels)
        masses.resize(n_labels)
        with nogil:
            code = c_label_masses(self.catalog, request, temperature, &labels[0], n_labels, poll,
                                  masses.data(), &where)
        if code != kOk:
            _raise(code, where, query, bias, raised, self.is_given, function)
        result = np.empty(n_labels), np.empty(n_labels), np.empty(n_labels, np.int64)
        cdef double[::1] values = result[0], references = result[1]
        cdef int64_t[::1] counts = result[2]
        for i in range(n_labels):
            values[i], references[i] = masses[i].value, masses[i].reference
            counts[i] = masses[i].count
        return result


cdef class GivenScores(PackedCatalog):
    """Items without vectors, whose scores come with each call: its query is all of them, (n_items,).

    They are read where they are. There is no bias. known: they need not be looked at, since they
    are known to be finite and within half the float32 range. rows and panel_rows as for others.
    """

    def __init__(self, int64_t n_items, const int64_t[::1] rows=None,
                 const int64_t[::1] panel_rows=None, bint known=False):
        if n_items < 1:
            raise ValueError("n_items: expected at least 1")
        self.is_given = True
        self.n_panels = (n_items + kLanes - 1) // kLanes
        self.query_length = n_items
        self.catalog.scores_known = known
        self._set_items(n_items, rows, panel_rows)


cdef const float* _floats(const float[::1] values) noexcept:
    """NULL for None."""
    if values is None:
        return NULL
    return &values[0]


cdef Table _table(PackedCatalog catalog, table, bias) except *:
    cdef const uint32_t[::1] depths = None if table is None else table[0]
    if (bias is not None or depths is None
            or depths.shape[0] != c_table_size(catalog.catalog.n_items)):
        raise ValueError("depths: expected a table of n_items, and no bias")
    return Table(&depths[0], table[1], table[2])


cdef Candidates _candidates(PackedCatalog catalog, const int64_t[::1] positions,
                            const float[::1] scores, double factor) except *:
    if scores is not None and scores.shape[0] != positions.shape[0]:
        raise ValueError("scores: expected one for each candidate")
    _check_positions("candidates", positions, catalog.catalog.n_items)
    return Candidates(_positions(positions), _floats(scores), positions.shape[0], factor)


cdef int _refuse_candidate(int64_t where, const int64_t[::1] positions,
                           const uint16_t[::1] eligible) except -1:
    cdef int64_t position = positions[where]
    if eligible is not None and not eligible[position // kLanes] >> position % kLanes & 1:
        raise ValueError(f"index: candidate {where} is an item that a filter takes out")
    raise ValueError(f"index: candidate {where} was there before")


cdef int64_t _no_position = 0


cdef const int64_t* _positions(const int64_t[::1] values) noexcept:
    """NULL for None; somewhere to point for no positions at all."""
    if values is None:
        return NULL
    if values.shape[0] == 0:
        return &_no_position
    return &values[0]


cdef int _check_positions(str name, const int64_t[::1] values, int64_t n_items,
                          int64_t lowest=0) except -1:
    """Refuses what is not in [lowest, n_items): it would be read, or written, past the end."""
    cdef int64_t i
    cdef bint outside = False
    if values is None:
        return 0
    for i in range(values.shape[0]):
        outside |= <uint64_t>values[i] - <uint64_t>lowest >= <uint64_t>(n_items - lowest)
    if outside:
        for i in range(values.shape[0]):
            if not lowest <= values[i] < n_items:
                raise ValueError(
                    f"{name}: entry {i}: expected a position in [{lowest}, {n_items}), "
                    f"got {values[i]}")
    return 0


cdef int _check_labels(const int32_t[::1] labels, int64_t n_labels) except -1:
    """Refuses those past the last one: masses would be written past the end."""
    cdef int32_t largest = -1
    cdef int64_t i
    for i in range(labels.shape[0]):
        largest = labels[i] if labels[i] > largest else largest
    return 0 if largest < n_labels else _refuse_labels(labels, n_labels)


cdef int _refuse_labels(labels, int64_t n_labels) except -1:
    entry = int(np.argmax(np.asarray(labels) >= n_labels))
    raise ValueError(
        f"labels: entry {entry}: expected a label below {n_labels}, got {labels[entry]}")


cdef Request _request(PackedCatalog self, const float[::1] query, const float[::1] bias,
                      const uint16_t[::1] eligible, int64_t n_eligible,
                      Function function=None) except *:
    if query.shape[0] != self.query_length:
        raise ValueError("query: wrong length")
    if bias is not None and (self.is_given or bias.shape[0] != self.catalog.n_items):
        raise ValueError("bias: wrong length")
    if eligible is not None and eligible.shape[0] != self.n_panels:
        raise ValueError("eligible: wrong length")
    if function is not None and (self.is_given or function.n_items != self.catalog.n_items):
        raise ValueError("function: of other items")
    cdef Request request
    request.query = &query[0]
    request.bias = _floats(bias)
    request.eligible = NULL
    if eligible is not None:
        request.eligible = &eligible[0]
    request.n_eligible = n_eligible
    request.function = NULL
    if function is not None:
        request.function = &function.function
    request.labels = NULL
    request.n_labels = 0
    return request


cdef int _check_pass_by_label(PackedCatalog self, const uint16_t[::1] labels, int64_t n_labels,
                              const int32_t[::1] kinds) except -1:
    cdef int64_t i
    if self.catalog.quantised.codes != NULL:
        raise ValueError("labels: no masses are summed over codes")
    for i in range(kinds.shape[0]):
        if kinds[i] != GUMBEL_KIND:
            raise ValueError("labels: no pass of this kind sums by them")
    if labels.shape[0] != kLanes * self.n_panels:
        raise ValueError("labels: wrong length")
    if c_highest_label(&labels[0], labels.shape[0]) >= n_labels:
        _refuse_labels(labels, n_labels)
    return 0


cdef tuple _allocate(int64_t room, Ranking* out):
    """Arrays for `room` places, and `out` pointing into them."""
    positions = np.empty(room, np.int64)
    scores = np.empty(room, np.float32)
    log_propensities = np.empty(room, np.float64)
    out.positions = <int64_t*>_data(positions)
    out.scores = <float*>_data(scores)
    out.log_propensities = <double*>_data(log_propensities)
    return positions, scores, log_propensities


cdef void* _data(array) except? NULL:
    """Where a fresh array's values are: a memoryview would check, and cost 0.3 us, for nothing."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    cdef void* data = view.buf
    PyBuffer_Release(&view)  # the array, and what it holds, lives on in its caller
    return data


cdef int _raise(Code code, int64_t where, const float[::1] query, const float[::1] bias,
                PyObject* raised, bint is_given=False, Function function=None) except -1:
    if code == kInterrupted:
        _reraise(raised)
    if code == kScoreNotFinite:
        raise ValueError(function.refuse(where // 4, _FAULTS[where % 4]))
    if is_given:
        _refuse_score(code, f"index {where}", query[where])
    if code == kQueryNotFinite:
        raise ValueError(f"query: must be finite in float32, got {query[where]} at index {where}")
    if code == kBiasNotFinite:
        raise ValueError(f"bias: must be finite in float32, got {bias[where]} at index {where}")
    if code == kScoreOverflow:
        norm = float(np.linalg.norm(np.asarray(query, dtype=np.float64)))
        raise ValueError(
            f"query: with a norm of {norm:g} scores could pass the float32 range; scale it down")
    raise MemoryError("fastrank: out of memory")


cdef int _refuse_score(Code code, place, float score) except -1:
    if code == kQueryNotFinite:
        raise ValueError(f"scores: {place}: must be finite in float32, got {score:g}")
    if code == kScoreOverflow:
        raise ValueError(
            f"scores: {place}: must lie within half the float32 range, 1.7e38 either way,"
            f" got {score:g}")
    raise MemoryError("fastrank: out of memory")


def table_size(int64_t n_items):
    """Cells of a table of so many items."""
    return c_table_size(n_items)


def make_filter(int64_t n_items, const int64_t[::1] allowed, const int64_t[::1] excluded):
    """(eligible uint16 (n_panels,), number of eligible items); None: no such filter."""
    cdef int64_t n_allowed = 0 if allowed is None else allowed.shape[0]
    cdef int64_t n_excluded = 0 if excluded is None else excluded.shape[0]
    cdef int64_t count
    cdef const int64_t* allow = _positions(allowed)
    cdef const int64_t* exclude = _positions(excluded)
    _check_positions("allowed", allowed, n_items)
    _check_positions("excluded", excluded, n_items)
    result = np.empty((n_items + kLanes - 1) // kLanes, np.uint16)
    cdef uint16_t[::1] eligible = result
    with nogil:
        count = c_make_filter(n_items, allow, n_allowed, exclude, n_excluded, &eligible[0])
    return result, count


def quantise(const float[:, ::1] vectors, int64_t first, const float[:, ::1] columns,
             uint8_t[:, :, :, ::1] codes, float[::1] scales, float[:, ::1] kept):
    """Fills codes, scales and `kept`, which begin with item `first`, with vectors (m, dim).

    Returns (flat index of the first element that is not finite or -1, and the largest squared norm,
    code error, code norm and scale).
    """
    cdef int64_t bad, count = vectors.shape[0]
    cdef int32_t dim = <int32_t>vectors.shape[1]
    cdef Extremes found = Extremes(0.0, 0.0, 0.0, 0.0)
    if (codes.shape[1] != (dim + 3) // 4 or first < 0 or first % kLanes
            or count > kLanes * codes.shape[0]
            or scales.shape[0] != kLanes * codes.shape[0] or kept.shape[0] != scales.shape[0]
            or kept.shape[1] != 4 * codes.shape[1] or columns.shape[0] != 2
            or columns.shape[1] != dim):
        raise ValueError("codes: shape does not fit the vectors")
    with nogil:
        bad = c_quantise(&vectors[0, 0], count, dim, first, &columns[0, 0], &columns[1, 0],
                         &codes[0, 0, 0, 0], &scales[0], &kept[0, 0], &found)
    return bad, found.square, found.code_error, found.code_norm, found.scale


def find_rows(const unsigned char[:, ::1] rows, const unsigned char[:, ::1] wanted, uint64_t key):
    """int64 (m,): the row (of n, all different) that equals each wanted one, -1 if none does."""
    cdef int64_t n_rows = rows.shape[0], n_wanted = wanted.shape[0], width = rows.shape[1]
    cdef PyObject* raised
    cdef Poll poll = _poll(&raised)
    cdef Code code
    if wanted.shape[1] != width or width == 0 or width % 4 or not 0 < n_wanted < 2**31:
        raise ValueError("wanted: shape does not fit the rows")
    result = np.empty(n_wanted, np.int64)
    cdef int64_t[::1] positions = result
    with nogil:
        code = c_find_rows(
            &rows[0, 0], n_rows, &wanted[0, 0], n_wanted, width, key, poll,
            &positions[0])
    if code == kInterrupted:
        _reraise(raised)
    if code != kOk:
        raise MemoryError("fastrank: out of memory")
    return result


def ascends(const int64_t[::1] ids):
    """Whether each integer is above the one before it."""
    cdef bool result
    if ids.shape[0] == 0:
        return True
    with nogil:
        result = c_ascends(&ids[0], ids.shape[0])
    return result


def rows_at(name, const int64_t[::1] order, const uint64_t[::1] places):
    """int64 (m,): a permutation's entries at these places, or at its last one.

    The permutation may come from a file: a ValueError for an entry that is no row.
    """
    cdef int64_t n = order.shape[0], i, row
    cdef uint64_t place
    result = np.empty(places.shape[0], np.int64)
    cdef int64_t* rows = <int64_t*>_data(result)
    for i in range(places.shape[0]):
        place = min(places[i], <uint64_t>(n - 1))
        row = order[place]
        if not 0 <= row < n:
            raise ValueError(f"damaged: {name}: entry {place} is {row}, not one of {n} rows")
        rows[i] = row
    return result


def find_consecutive(name, const int64_t[::1] ids, const int64_t[::1] order, int64_t first,
                     const int64_t[::1] wanted):
    """int64 (m,): where each wanted id is in ids that are first, first + 1, ... once sorted by
    `order`; -1 if it is before or behind them.

    The permutation may come from a file: a ValueError where it does not sort these ids.
    """
    cdef uint64_t n = ids.shape[0], distance
    cdef int64_t i, row
    result = np.empty(wanted.shape[0], np.int64)
    cdef int64_t* rows = <int64_t*>_data(result)
    if order.shape[0] != ids.shape[0]:
        raise ValueError("order: wrong length")
    for i in range(wanted.shape[0]):
        distance = <uint64_t>wanted[i] - <uint64_t>first  # modulo 2**64: below the first is large
        if distance >= n:
            rows[i] = -1
            continue
        row = order[distance]
        if not 0 <= row < <int64_t>n or ids[row] != wanted[i]:
            raise ValueError(
                f"damaged: {name}: entry {distance} is {row}, where the id {wanted[i]} is not")
        rows[i] = row
    return result


def pack(const float[:, ::1] vectors, int64_t first, float[:, :, ::1] panels):
    """Copies vectors (m, dim) into panels from item `first` on.

    Returns (flat index of the first element that is not finite or -1, largest squared norm).
    """
    cdef int64_t bad, rows = vectors.shape[0]
    cdef int32_t dim = <int32_t>vectors.shape[1]
    cdef double max_square = 0.0
    if panels.shape[1] != dim or panels.shape[2] != kLanes or not (
            0 <= first <= kLanes * panels.shape[0] - rows):
        raise ValueError("panels: shape does not fit the vectors")
    with nogil:
        bad = c_pack(&vectors[0, 0], rows, dim, first, &panels[0, 0, 0], &max_square)
    return bad, max_square


cdef const Catalog* _catalog_of(packed) except NULL:
    return &(<PackedCatalog?>packed).catalog


cdef Forced* _forced() noexcept:
    return forced()


def isa():
    """Name of the build in use, or None if this CPU can run none."""
    return None if c_isa_active() == NULL else c_isa_active().decode()


def set_isa(name):
    """Chooses a build for the whole process; returns the previous one's name."""
    previous = isa()
    if not c_isa_select(name.encode()):
        known = [c_isa_name(i).decode() for i in range(kIsaCount) if c_isa_name(i) != NULL]
        raise ValueError(f"isa: this CPU runs {', '.join(known)}; got {name!r}")
    return previous
