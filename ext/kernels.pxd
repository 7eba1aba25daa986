# What Cython sees of kernels.h.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool


cdef extern from "kernels.h" namespace "fastrank" nogil:
    enum: kLanes
    enum: kIsaCount
    ctypedef enum Code:
        kOk, kQueryNotFinite, kBiasNotFinite, kScoreOverflow, kOutOfMemory, kInterrupted,
        kNoCandidate, kScoreNotFinite
    enum: kOpCount
    enum: kRegisters
    ctypedef enum OperandKind:
        kRegister, kDot, kConstant, kColumn, kFlags
    cdef struct Step:
        int32_t op
        int32_t to
        int32_t a
        int32_t b
        int32_t c
    cdef struct CFunction "fastrank::Function":
        const Step* steps
        int64_t n_steps
        const float* constants
        const float* const* columns
        const uint16_t* const* flags
        void (*run)(const void*, int64_t, int64_t, float*) noexcept
        const void* context
    cdef struct Poll:
        bool (*stop)(void* context) noexcept
        void* context
    ctypedef enum PolicyKind:
        pass
    cdef struct Quantised:
        const uint8_t* codes
        const float* scales
        const float* center
        const float* unit
        double code_error
        double code_norm
        double code_moment
        double max_scale
        double tolerance
    cdef struct Catalog:
        const float* panels
        const float* vectors
        Quantised quantised
        const float* bias
        const int64_t* rows
        const int64_t* panel_rows
        int64_t n_items
        int32_t dim
        double max_norm
        double max_bias
        bool scores_known
    cdef struct Request:
        const float* query
        const float* bias
        const uint16_t* eligible
        int64_t n_eligible
        const CFunction* function
        const uint16_t* labels
        int64_t n_labels
    cdef struct Policy:
        PolicyKind kind
        double temperature
        double epsilon
        uint64_t seed
    cdef struct Ranking:
        int64_t* positions
        float* scores
        double* log_propensities
        double log_norm
        double log_norm_error
        int64_t count
        int64_t n_scored
        bool from_table
        double* label_masses
        double label_reference
    cdef struct Table:
        const uint32_t* depths
        double reference
        double largest
    cdef struct User:
        Request request
        const int64_t* allowed
        const int64_t* excluded
        int64_t n_allowed
        int64_t n_excluded
        Policy policy
        Table table
        Ranking out
    cdef struct Largest:
        double score
        double bias
    Code c_check_request "fastrank::check_request"(
        const Catalog&, const Request&, int64_t*, Largest*)
    Code c_rank "fastrank::rank"(
        const Catalog&, User*, int64_t, int64_t, int64_t, const Poll&, int64_t*, int64_t*)
    Code c_log_propensities "fastrank::log_propensities"(
        const Catalog&, const Request&, const Policy&, const int64_t*, int64_t, const Poll&,
        double*, int64_t*)
    Code c_score_all "fastrank::score_all"(
        const Catalog&, const Request&, const Poll&, float*, int64_t*)
    Code c_scores_at "fastrank::scores_at"(
        const Catalog&, const Request&, const int64_t*, int64_t, const Poll&, float*, int64_t*)
    cdef struct LabelMass:
        double value
        double reference
        int64_t count
    Code c_label_masses "fastrank::label_masses"(
        const Catalog&, const Request&, double, const int32_t*, int64_t, const Poll&, LabelMass*,
        int64_t*)
    Code c_values_of "fastrank::values_of"(
        const CFunction&, int64_t, const Poll&, float*, int64_t*)
    int64_t c_table_size "fastrank::table_size"(int64_t)
    Code c_make_tables "fastrank::make_tables"(
        const Catalog&, const Request*, const double*, int64_t, int64_t, const Poll&, uint32_t*,
        double*, int64_t*, int64_t*)
    cdef struct Candidates:
        const int64_t* positions
        const float* scores
        int64_t count
        double factor
    cdef struct FlatTail:
        bool* is_candidate
        double log_weight
    Code c_rank_flat_tail "fastrank::rank_flat_tail"(
        const Catalog&, const Request&, const Candidates&, double, uint64_t, int64_t, const Poll&,
        Ranking*, FlatTail*, int64_t*)
    Code c_flat_tail_log_propensities "fastrank::flat_tail_log_propensities"(
        const Catalog&, const Request&, const Candidates&, double, const int64_t*, int64_t,
        const Poll&, double*, int64_t*)
    int64_t c_make_filter "fastrank::make_filter"(
        int64_t, const int64_t*, int64_t, const int64_t*, int64_t, uint16_t*)
    cdef struct Extremes:
        double square
        double code_error
        double code_norm
        double scale
    int64_t c_quantise "fastrank::quantise"(
        const float*, int64_t, int32_t, int64_t, const float*, const float*, uint8_t*, float*,
        float*, Extremes*)
    Code c_find_rows "fastrank::find_rows"(
        const unsigned char*, int64_t, const unsigned char*, int64_t, int64_t, uint64_t,
        const Poll&, int64_t*)
    bool c_ascends "fastrank::ascends"(const int64_t*, int64_t)
    uint16_t c_highest_label "fastrank::highest_label"(const uint16_t*, int64_t)
    int64_t c_pack "fastrank::pack"(
        const float*, int64_t, int32_t, int64_t, float*, double*)
    const char* c_isa_name "fastrank::isa_name"(int)
    const char* c_isa_active "fastrank::isa_active"()
    bint c_isa_select "fastrank::isa_select"(const char*)
    cdef struct Forced:
        pass
    Forced* forced()
