// The contract of the native core.
//
// Who does what: Python decides (which policy, which items, how to word errors), Cython checks,
// allocates and releases the GIL around one call, C++ computes. Nothing here sees a Python object,
// raises across the boundary, keeps a pointer after it returns, or holds global state other than
// the table of the chosen instruction set. All functions may run in any number of threads at once.
//
// Interruption. A long call asks its Poll whether to stop: only on the thread that made the call,
// not in the first 25 ms, then about every 25 ms for as long as the call lasts, also while it waits
// for its other threads. The poll may do anything, including calls of the functions below. Once it
// says stop it is not asked again, all threads of the call end within the time of some hundred
// panels, and the call returns kInterrupted. If it never does, the result is the same, bit for bit,
// as without a poll.
//
// Numbers as indices. Every position passed in lies in [0, n_items), or is -1 where that is
// allowed: Cython refuses others. `rows` and `panel_rows`, which may come from a file, are only
// compared. A catalog's floats never become indices, and never decide whether a loop ends: a
// damaged catalog, with a NaN or an infinity, gives meaningless rankings, but of distinct items.
//
// Items and panels. Item i is in lane i % 16 of panel i / 16. A panel is `dim` rows of 16 float32,
// dimension-major: panels[(p * dim + c) * 16 + lane]. Lanes past n_items hold zeros and are never
// eligible.
//
// int8 storage. Item i is x_i = center + scale_i * unit * code_i + a rounding error; codes are
// integers in [-127, 127], stored plus 128 and grouped by four dimensions: codes[(p * groups + c /
// 4) * 64 + lane * 4 + c % 4], groups = ceil(dim / 4). Codes find the items that matter; results
// are computed from the float32 vectors stored beside them: vectors[i * 4 groups + c], zero past
// dim, for all lanes.
//
// Given scores. For items without vectors, a request's query is the scores themselves, n_items of
// them in the caller's memory, which is read in place. Only the scores of an incomplete last panel
// are copied, to a buffer of 16.
//
// Values. Vectors, queries, biases and scores are finite float32; `check_request` refuses inputs
// that could leave that range, so no kernel meets a NaN; results of functions are checked tile by
// tile. Probabilities are float64, in log space.
//
// The way of a score. A score source (Source: a request's panels, codes or given scores) fills a
// tile (Tile: a run of panels); a pass (chunks.h) draws from it; what it keeps of a chunk is a
// partial (sampling.h), and partials are merged. A single user, and the scattered pilot, go panel
// by panel without a tile, with the same bits. A function of scores (Function) works on the tile in
// place, after the source has filled it and before a pass sees it; without a tile, on the scores of
// each panel. Like a source it must give one number per item, however panels are divided into tiles
// and whichever thread asks. If that of an eligible item is not finite, or out of range, the call
// fails and names it. Codes are not used then, since their bounds hold for dot products. Biases are
// added to the function's results.
//
// Order. Everywhere: key descending, then row ascending. The row is the caller's position, which
// equals ours unless the catalog is stored in another order (`rows`). With fewer than k eligible
// items the ranking is shorter, never padded.
//
// The random stream (fastrank.RNG_VERSION 2). Number j of chunk c for purpose p is 64 bits of
// Philox4x32-10 with counter (j / 2 low, j / 2 high, c, p) and key (seed low, seed high): its first
// two words for even j, the last two for odd j. A uniform is ((bits >> 12) + 0.5) 2^-52, strictly
// inside (0, 1) and finest near 0; an exponential is minus its logarithm.
//
// The chunk law. A catalog is divided into chunks of 1024 * ceil(min(k, n) / 256) panels in order
// of position. A pilot comes first, as part of chunk 0: about max(n / 256, 64 k) items, but at most
// n / 16, as panels evenly spread over the whole catalog, visited in a scattered order and skipped
// later. So whatever the storage order, few items pass the best of the pilot. Chunks 1, 2, 4, 8,
// ... fix a floor for themselves and those after them: the k-th best of all chunks before. Partials
// merge in chunk order. Nothing of this depends on the number of threads.
//
// Rankings of int8 storage. The streams and chunks are the same, but numbers are also spent on
// items whose bound passes and whose score does not. So the law is that of float32 storage, but a
// seed gives a different ranking, which RNG_VERSION pins too.
//
// Version 2 draws as version 1 did, except for kTable, which is new; kUniform, which had shared its
// numbers with kEpsilonGreedy; and kGumbel over codes, which leaves them for float32 vectors at
// other points.
#pragma once

#include <cstdint>

namespace fastrank {

constexpr int kLanes = 16;
constexpr int kMaxTileUsers = 4;  // the most of any instruction set
constexpr int kLabelCopies = 4;
constexpr int kAhead = 16;  // random numbers and exponentials that kernels make at a time

enum Code : int32_t {
  kOk = 0,
  kQueryNotFinite = 1,  // *where: index into the query
  kBiasNotFinite = 2,   // *where: index into the call's bias
  kScoreOverflow = 3,   // a score could pass the float32 range
  kOutOfMemory = 4,
  kInterrupted = 5,  // the call's Poll said stop; outputs mean nothing
  kNoCandidate = 6,  // *where: the entry that is not eligible, or there before
  kScoreNotFinite = 7,  // of a function; *where: 4 * the item's position + a Fault
};

// What is wrong with a score that a function made.
enum Fault : int32_t { kIsNaN = 0, kIsAbove = 1, kIsBelow = 2 };

// Whether the caller wants a call to end early.
struct Poll {
  bool (*stop)(void* context);  // null: it does not
  void* context;
};

// int8 storage; borrowed.
struct Quantised {
  const uint8_t* codes;
  const float* scales;  // 16 * n_panels, at least 2^-100
  const float* center;  // dim
  const float* unit;    // dim, powers of two
  double code_error;    // largest |(x_i - center) / (unit * scale_i) - code_i|
  double code_norm;     // largest |code_i|
  double code_moment;   // largest sum over items of (code_i . u)^2 for a direction |u| = 1
  double max_scale;     // largest scale
  double tolerance;     // a log-normaliser's error may be estimated up to this
};

// A packed catalog; borrowed. Either panels, or vectors and their quantised form; or neither, where
// scores are given: then there are no biases, and dim is 0.
struct Catalog {
  const float* panels;
  const float* vectors;
  Quantised quantised;
  const float* bias;  // 16 * n_panels floats, or null
  const int64_t* rows;        // the caller's position of each item, or null: the same as ours
  const int64_t* panel_rows;  // the lowest of each panel; null if `rows` is
  int64_t n_items;
  int32_t dim;
  double max_norm;  // largest |vector|
  double max_bias;  // largest |bias|, 0 without one
  bool scores_known;  // given scores are known to be finite and in range: they are not looked at
};

// A function of scores, given as steps. Each takes up to three operands, 65536 * kind + number, and puts
// a number for every item into register `to`, or, if that is -1, makes it the score. What is true is 1,
// what is false 0.
enum OperandKind : int32_t { kRegister = 0, kDot = 1, kConstant = 2, kColumn = 3, kFlags = 4 };

enum Op : int32_t {
  kCopy,
  kNegate, kAbs, kSqrt, kExp, kLog, kLog1p, kSigmoid, kNot,
  kAdd, kSubtract, kMultiply, kDivide, kPower, kMin, kMax,
  kLess, kLessEqual, kEqual, kNotEqual, kAnd, kOr,
  kSelect,  // a ? b : c
  kOpCount
};

constexpr int kRegisters = 24;

struct Step {
  int32_t op, to, a, b, c;
};

// A function of scores; borrowed. Either steps, or code: `run` turns the dot products of items first,
// ..., first + count - 1 into scores, in place.
struct Function {
  const Step* steps;
  int64_t n_steps;
  const float* constants;         // 16 times each
  const float* const* columns;    // 16 * n_panels each: of steps
  const uint16_t* const* flags;   // a word per panel each, a bit per item
  void (*run)(const void* context, int64_t first, int64_t count, float* scores);
  const void* context;
};

// What a function may make of any item, so that biases leave it in range.
constexpr float kLargestMade = 1e38f;

// One call's own inputs; borrowed.
struct Request {
  const float* query;        // dim floats, or n_items given scores
  const float* bias;         // n_items floats added to the catalog's bias, or null
  const uint16_t* eligible;  // a word per panel, a bit per item, none set past n_items; or null
  int64_t n_eligible;        // bits set in it, or n_items
  const Function* function;  // what makes scores of dot products, or null: they are the scores
  const uint16_t* labels;    // 16 * n_panels, each below n_labels; of kGumbel, without codes; or null
  int64_t n_labels;
};

enum PolicyKind : int32_t {
  kDeterministic = 0,
  kGumbel = 1,
  kSequential = 2,
  kEpsilonGreedy = 3,
  kUniform = 4,
  kTable = 5,  // Plackett-Luce from the user's table
};

struct Policy {
  PolicyKind kind;
  double temperature;  // Plackett-Luce
  double epsilon;      // epsilon-greedy
  uint64_t seed;
};

// A user's table, at one temperature; borrowed. See "Tables" below.
struct Table {
  const uint32_t* depths;  // of each cell
  double reference;  // a score
  double largest;    // the logarithm of the largest mass, relative to it
};

// What a rank call fills: room for min(k, n_items) places, of which `count` are used.
struct Ranking {
  int64_t* positions;
  float* scores;
  double* log_propensities;
  double log_norm;  // NaN unless Plackett-Luce
  double log_norm_error;  // bound on the error of log_norm and of each log-propensity; 0: exact
  int64_t count;
  int64_t n_scored;   // items whose score was computed; a pass: all that are eligible
  bool from_table;    // else by a pass
  double* label_masses;  // where the request has labels: n_labels values, see "Labels",
  double label_reference;  // relative to this
};

// The largest that absolute values can be.
struct Largest {
  double score;
  double bias;  // the catalog's and the call's together
};

// One user of a rank call.
struct User {
  Request request;          // `rank` sets n_eligible where it makes the filter
  const int64_t* allowed;   // catalog positions, in any order, repeated or not, from which it makes
  const int64_t* excluded;  // request.eligible for as long as it needs it; null: no such filter
  int64_t n_allowed, n_excluded;
  Policy policy;
  Table table;  // of kTable, whose requests have no bias
  Ranking out;
  Largest largest;  // set by `rank`
  int64_t fault;    // likewise: of a score that its function made
};

// Checks query and bias for finiteness and the scores for range: O(dim), plus O(n) with a bias and
// where scores are given; then *where is set for kScoreOverflow, too.
// The calls below begin with it, `rank` for all users.
Code check_request(const Catalog&, const Request&, int64_t* where, Largest*);

// Ranks for each user as if it were alone, to the bit, on at most `threads` threads, this one
// among them; they end before the call does, and fewer are used where they cannot be started or
// would have nothing to do. Users of the policies that scan share each panel that is loaded.
// O(n dim + k log k) a user; sequential O(n dim + k n). Extra memory O(k), and n / 8 bytes where
// there is a filter, for each of up to 64 users a thread; sequential O(n). Over codes Plackett-Luce
// also reserves room to note one item in seven of a chunk, 55 KB for every 256 of k, three times
// (3 t + 1 times where t threads share a pass), and keeps what all chunks noted, usually hundreds
// or thousands of items and at most one in seven, at 24 to 48 bytes, and 60 for one user at a time;
// with vectors of 96 dimensions and more one item in five, of 192 and more two in five.
// After an error outputs mean nothing, and *row is the user whose request was refused.
Code rank(const Catalog&, User* users, int64_t count, int64_t k, int64_t threads, const Poll&,
          int64_t* row, int64_t* where);

// Conditional log-propensities of a given ranking in one pass. positions: catalog positions, -1
// for an unknown item. An unknown, ineligible or repeated item gets -inf and removes nothing.
Code log_propensities(const Catalog&, const Request&, const Policy&, const int64_t* positions,
                      int64_t count, const Poll&, double* out, int64_t* where);

// float32 scores of all items, in catalog order, as every other kernel computes them.
Code score_all(const Catalog&, const Request&, const Poll&, float* out, int64_t* where);
// Of the items at these positions alone, eligible or not, to the bit. O(count dim); positions of one
// panel, where they come in a row, cost what one does.
Code scores_at(const Catalog&, const Request&, const int64_t* positions, int64_t count, const Poll&,
               float* out, int64_t* where);

// What a function makes of dot products of 0: n_items numbers, without biases. O(n steps).
Code values_of(const Function&, int64_t n_items, const Poll&, float* out, int64_t* where);

// A sum of weights, exp((score - reference) / T) over some items: `value` times
// exp(reference / T), which float64 could not hold. No items: value 0.
struct Mass {
  double value;
  double reference;
};

// Labels. A small whole number for each item. A pass of kGumbel sums besides, label by label, what it
// does not rank: masses of the eligible items that are not among its k, all relative to one score. The
// ranking is to the bit what it is without, and the masses are, too, whoever else passes and on however
// many threads. A mass is right to 1e-6 of itself if it is a thousandth of all, else to 2e-5; and what is
// 87 T below a threshold of its time counts nothing, n 2^-126 in all: so masses far below the largest may
// lack much, or be 0. A pass takes 10 to 15 % longer, over a million vectors of 64 dimensions and up to
// 4,000 labels, and twice as long over given scores; O(n_labels) a chunk.
// Extra memory 36 KB, and 48 bytes a label (of more than 4,096 labels 24), for each user of a block and
// thread, and 16 bytes a label for each chunk on its way.
//
// `label_masses` has each of them relative to itself, right to some 1e-7 however far it is below others.
struct LabelMass {
  double value;      // the sum of exp((score - reference) / T) over its eligible items
  double reference;  // the highest of their scores; 0 where there are none
  int64_t count;     // of them
};

// labels: n_items of them, below n_labels, negative where an item has none. T may be infinite: all
// weights are 1 then. One pass, O(n dim + n_labels).
Code label_masses(const Catalog&, const Request&, double temperature, const int32_t* labels,
                  int64_t n_labels, const Poll&, LabelMass* out, int64_t* where);

// Tables. A catalog is cut into cells, runs of panels: 1, 2, 4, ..., at most 32, as few as make no more
// than 4,096 cells. A user's table at one temperature T has, for each cell, the logarithm of its mass,
// the sum of exp((score - reference) / T) over its items: the `largest`, and of all how far they are below
// it, in units of 2^-21, rounded; 0xE0000000 where it is as far or farther. So what a table says of a
// mass is off by at most 2.4e-7 of it, however small it is beside the largest.
//
// `rank` draws from one for kTable: in O(cells + k (cell + cells / 64)), and per place one cell is
// scored at most. A filter adds O(n / 64), and scores for each cell that it cuts what it takes or what it
// leaves, as far as the cell's mass counts: cells with 2^-28 of all that is left may stand with what they
// had. Where that could cost more than a pass the ranking is what kGumbel draws.
int64_t table_size(int64_t n_items);  // number of cells
// Tables of `count` users, whose requests have no filter and no bias: depths (count, table_size), and
// reference and largest of each. O(n dim) a user; users share panels, and threads tiles; the result does not depend
// on either. Extra memory 8 bytes for each cell of 64 users. Errors as `rank`.
Code make_tables(const Catalog&, const Request*, const double* temperatures, int64_t count,
                 int64_t threads, const Poll&, uint32_t* depths, double* tops, int64_t* row,
                 int64_t* where);

// A flat tail. Some eligible items are candidates, however they were found, with weights exp(score
// / T); all others share one weight: `factor` times that of the candidate with the lowest score, or
// 1 without candidates. A place shows an item with its share of the weight that is left.
struct Candidates {
  const int64_t* positions;  // eligible, none twice
  const float* scores;       // null: the catalog's
  int64_t count;
  double factor;  // in (0, 1]
};

// What a ranking says of it besides.
struct FlatTail {
  bool* is_candidate;  // for each place
  double log_weight;   // of each other item, on the scale of score / T
};

// O(m + k m / 64), and O(n / 16) more where a filter is and an item of the tail is drawn. The
// candidates' order is part of what a seed draws. `out` as of `rank` for kGumbel:
// log_norm is the logarithm of all weights; its scores are the candidates', and of other items the
// catalog's.
Code rank_flat_tail(const Catalog&, const Request&, const Candidates&, double temperature,
                    uint64_t seed, int64_t k, const Poll&, Ranking* out, FlatTail* tail,
                    int64_t* where);

// As `log_propensities`, in O(m + count).
Code flat_tail_log_propensities(const Catalog&, const Request&, const Candidates&,
                                double temperature, const int64_t* positions, int64_t count,
                                const Poll&, double* out, int64_t* where);

// The bitset of `allowed` (null = every item) less `excluded`: positions in [0, n_items), in any
// order, repeated or not. Returns the number of bits set.
int64_t make_filter(int64_t n_items, const int64_t* allowed, int64_t n_allowed,
                    const int64_t* excluded, int64_t n_excluded, uint16_t* eligible);

// The largest of what `quantise` met.
struct Extremes {
  double square;  // |vector|^2
  double code_error, code_norm, scale;
};

// Fills codes, scales and kept vectors, which begin with item `first`, for vectors (n_rows, dim);
// `first` is a panel's first item. Returns and `extremes` as `pack`. What spare lanes hold is the
// caller's: codes of 128, scales of 0.
int64_t quantise(const float* vectors, int64_t n_rows, int32_t dim, int64_t first,
                 const float* center, const float* unit, uint8_t* codes, float* scales,
                 float* kept, Extremes* extremes);

// Where each of `n_wanted` rows of `width` bytes (a multiple of 4) stands among `n_rows` different
// ones, -1 if nowhere: a hash table of the wanted and one pass over the rows, O(n_rows + n_wanted),
// with 20 bytes a wanted row besides. `key` is random, so that nobody can choose rows that collide.
Code find_rows(const unsigned char* rows, int64_t n_rows, const unsigned char* wanted,
               int64_t n_wanted, int64_t width, uint64_t key, const Poll&, int64_t* positions);

// Whether each of so many integers is above the one before it. O(count), and it stops near the first
// that is not.
bool ascends(const int64_t* values, int64_t count);

// The largest of so many, 0 of none.
uint16_t highest_label(const uint16_t* labels, int64_t count);

// Copies row-major vectors (n_rows, dim) into the panels from item `first` on, zeroing the last
// panel's spare lanes. Returns the flat index of the first element that is not finite, or -1.
// *max_square is raised to the largest squared norm.
int64_t pack(const float* vectors, int64_t n_rows, int32_t dim, int64_t first, float* panels,
             double* max_square);

// Instruction sets, best last: "v2", "v3" (AVX2, FMA), "v4" (AVX-512), "v4_vnni" (and its sums of
// products of bytes, for int8 storage).
constexpr int kIsaCount = 4;
const char* isa_name(int index);     // null if this CPU, or this build, lacks it
const char* isa_active();            // at first the best there is; null if there is none
bool isa_select(const char* name);   // false if there is no such set

// For tests, whose own module has the rest (probes.h): what they force in this one.
struct Forced* forced();

// ---- Inside the core: what is compiled once per instruction set ----------------------------

// A query in whole numbers, and how far the scores it gives can be from the float32 ones.
//   estimate = base + scale * (step * sum(code * query)) (+ biases)
//   float32 score <= upper = estimate + scale * certain + margin (+ a part of the biases)
struct QuantisedQuery {
  const int8_t* high;    // query = 256 high + low, in groups of four
  const int8_t* low;
  const int16_t* whole;  // in groups of four: 0, 2, 1, 3
  int32_t offset;        // what the codes' 128 adds to a sum, taken off again
  float step, base, certain, margin;
};

// What a source has scored of panels `first`, ...: 16 numbers a panel, dot products (over codes: sums
// of products), or what a function made of them, before any bias. Borrowed from who walks over it; or
// null.
struct Tile {
  const float* dots;
  int64_t first;
};

constexpr int64_t kNoFault = INT64_MAX;

// A score source: a request joined with its catalog, ready to score panels.
struct Source {
  const float* panels;
  const float* vectors;  // instead of panels
  const float* scores;   // given, instead of either
  const uint8_t* codes;  // null: there are none, or this request does without them
  const float* scales;
  QuantisedQuery quantised;
  const class CodeQuery* query_of_codes;  // whose view `quantised` is
  const float* bias;
  const float* call_bias;
  const uint16_t* eligible;
  const float* query;  // padded with -0.0 to a multiple of four where there are vectors
  const int64_t* rows;
  const int64_t* panel_rows;
  int64_t n_panels;
  int32_t dim;
  uint16_t last_lanes;          // lanes of the last panel that are items
  float call_bias_tail[kLanes];  // the call's bias for the last panel, padded
  float scores_tail[kLanes];     // given scores likewise
  const Function* function;
  const uint16_t* labels;
  int64_t n_labels;
  int64_t* fault;  // the least that it has met, as kScoreNotFinite says; at first kNoFault
  // While one is set, scores of its panels (over codes: estimates alone) come from it, and no others
  // may be asked for.
  Tile tile;
};

// A walk over panels first + offset * step, offset = 0, stride, 2 stride, ... modulo count: a run
// in order (step and stride 1) or the scattered pilot. It can stop and go on.
struct Scan {
  int64_t first, step, count, stride;
  int64_t visit, offset;  // visits made, and the next one's offset
  float reference;        // weights are exp((score - reference) * inv_temperature)
  float inv_temperature;
  double mass;            // sum of weights since it was last set to 0
  double limit;           // scan_mass stops at the panel that takes `mass` past it
  // scan_above: an equal score counts as above up to this panel or, where items have rows, in
  // panels whose lowest row is not above this one.
  int64_t tie_panel, tie_row;
  struct Weighed* weighed;  // scan_labels only
  // At a stop: the panel, not counted in `mass`.
  int64_t panel;
  uint32_t lanes;  // its eligible lanes; of scan_above, those above
  float scores[kLanes];
  float weights[kLanes];  // scan_mass and scan_labels only
};

// What a pass has weighed, until its labels' sums take it, many panels at a time: sums lie anywhere, and
// one by one they would wait for memory beside the panels.
struct Weighed {
  static constexpr int64_t kRoom = 512;
  float weights[kRoom * kLanes];
  int64_t panels[kRoom];
  int64_t count;
  double unit;     // what a weight counts
  double* sums;    // `copies` for each label: labels repeat, and lanes that add to the same number wait
  int64_t copies;  // for each other. 1 or kLabelCopies
};

// An item that may be scored in float32 before its weight is added to a normaliser.
struct Noted {
  int64_t position;
  float estimate, heaviness, scale;
  float score;  // in float32; NaN until it is known
};

// Sums over items that are never scored in float32.
struct Estimates {
  double mass;      // of estimated weights
  double scaled;    // of estimated weight * deviation, that of its logarithm
  double variance;  // of (estimated weight * deviation)^2
};

// The walk of a scan over codes.
struct CodeScan {
  Scan walk;  // of scan_codes: `mass` and `limit` speak of upper bounds; scores are estimates
  float uppers[kLanes], heaviness[kLanes];
  bool linear;             // weights are bounded by their estimates times
  float intercept, slope;  // intercept + slope * deviation
  float deviation;  // standard deviation of an estimated log-weight, per unit of scale
  // Items are noted whose heaviness, estimate + noting * scale + margin (+ a part of the biases),
  // reaches the cut.
  float noting, cut;
  Estimates estimates;  // of the others
  Noted* noted;
  int64_t n_noted, room;  // a scan stops, at a panel with no lanes, when room runs out
};

// What a kernel makes of a cell: room for 16 numbers a panel, and for one.
struct Cell {
  float* scores;
  float* weights;  // relative to the highest score; 0 where an item is not eligible
  float* sums;     // of a panel's weights
  float highest;   // of the eligible; -inf if there are none
};

// What is read after a tile, and fetched with it into the second cache: a run of cache lines; over
// codes float32 rows, too.
struct Ahead {
  const void* run;
  int64_t run_lines;
  const float* const* rows;
  int64_t n_rows, row_lines;
};

struct Kernels {
  const char* name;
  // Each visits panels until one stops it (true) or none is left (false).
  bool (*scan_mass)(const Source&, Scan*);   // stops where `mass` would pass `limit`
  bool (*scan_labels)(const Source&, Scan*);  // likewise; what is in `mass` is in `weighed`, too
  bool (*scan_above)(const Source&, Scan*);  // stops where a score is above `reference`; no mass
  bool (*scan_sum)(const Source&, Scan*);    // stops where a score is above `reference`
  void (*add_weighed)(const Source&, Weighed*);  // to its sums, and empties it
  // weights[i] = exp((scores[i] - reference) * inv_temperature) in the lanes given, else 0; may
  // be +inf. Returns their sum, as the scans form it.
  float (*weigh)(const float* scores, uint32_t lanes, float reference, float inv_temperature,
                 float* weights);
  void (*score_panel)(const Source&, int64_t panel, float* scores);
  // Fills the tiles of 1 to tile_users users, of panels first, ..., first + count - 1, to the bit as a
  // scan forms their numbers:
  // dots[(user * count + panel - first) * 16 + lane]. The users share a catalog. Meanwhile what comes
  // ahead is fetched.
  void (*score_tile)(const Source* const* sources, int users, int64_t first, int64_t count,
                     const Ahead& ahead, float* dots);
  int tile_users;
  // Makes a source's scores of the dot products of such a tile, by its function.
  void (*apply)(const Source&, int64_t first, int64_t count, float* dots);
  // out[0..kAhead) = numbers 2 `first`, 2 `first` + 1, ... of a stream, as exponentials.
  void (*exponentials)(uint64_t seed, uint32_t chunk, uint32_t purpose, uint64_t first,
                       double* out);
  // x[i] = exp(x[i]) for i in [0, kAhead), |x[i]| <= kExpInRange.
  void (*exps)(double* x);
  // Of row-major vectors: one item, or up to 16.
  float (*score_row)(const Source&, int64_t position);
  void (*score_rows)(const Source&, const int64_t* positions, int count, float* scores);
  // Over codes. The first stops where the upper bounds of the weights would pass `limit`; the
  // second where an upper bound of a score reaches `reference`.
  bool (*scan_codes)(const Source&, CodeScan*);
  bool (*scan_codes_above)(const Source&, CodeScan*);
  // Bounds of the weights of walk.lanes, as scan_codes forms them, for another reference; returns
  // their sum.
  float (*weigh_codes)(const Source&, CodeScan*);
  // Adds up to 16 items' estimates to the sums.
  void (*add_estimates)(const float* estimates, const float* scales, uint32_t lanes,
                        float reference, float inv_temperature, float deviation, Estimates*);
  // Scores panels first, ..., first + count - 1; returns the sum of their weights.
  double (*weigh_cell)(const Source&, int64_t first, int64_t count, float inv_temperature, Cell*);
  // weights[i] = exp((reference - depths[i]) 2^-21), of depths that are not below the reference.
  void (*weigh_depths)(const uint32_t* depths, int64_t count, uint32_t reference, float* weights);
  // Of arrays of the caller's. The bits of the largest magnitude: those of an infinity or more if one
  // is not finite. Whether each integer is above the one before. And the largest.
  uint32_t (*largest_magnitude)(const float* values, int64_t count);
  bool (*each_above_last)(const int64_t* values, int64_t count);
  uint16_t (*largest_label)(const uint16_t* labels, int64_t count);
};

const Kernels& kernels();

}  // namespace fastrank
