// Plackett-Luce from tables (kernels.h): how they are made, and how a ranking is drawn from one.
//
// A draw takes a cell by its mass, scores the cell's items and takes one of them. A scored cell's mass
// is summed anew without what was shown: every denominator is a sum of positive terms, so a head far
// above the rest takes nothing of the rest's precision with it.

#include <cstring>
#include <limits>
#include <new>

#include "chunks.h"
#include "table.h"

namespace fastrank {
namespace {

constexpr int64_t kMostCells = 4096, kMostCellPanels = 32;
constexpr double kStep = 0x1p-21;  // of a depth, in logarithms
// Depths from here on say no more than that: such a cell is this far below the largest, or farther.
constexpr uint32_t kDeep = 0xE0000000u;
constexpr uint32_t kGone = 0xFFFFFFFFu;  // of a call: no mass, or none that a table knows of
// Logarithms of weights are float32, relative to a reference, and lose digits far below it: it moves
// where the sum is below this.
constexpr double kLow = 0x1p-12;
// Of all that is left, how much may be in cells whose excluded items are not looked at.
constexpr double kLoose = 0x1p-28;
constexpr int64_t kBlock = 64;  // cells that share a sum
constexpr size_t kPiecesAhead = 2;

int64_t cell_panels(int64_t n_panels) {
  int64_t panels = 1;
  while (panels < kMostCellPanels && panels * kMostCells < n_panels) panels *= 2;
  return panels;
}

int64_t cell_count(int64_t n_panels) {
  const int64_t panels = cell_panels(n_panels);
  return (n_panels + panels - 1) / panels;
}

uint16_t items_of(const Source& source, int64_t panel) {
  return panel == source.n_panels - 1 ? source.last_lanes : uint16_t(0xFFFFu);
}

// A cell from which a filter takes items.
struct Cut {
  int64_t cell;
  int64_t panels, items;          // panels with items that are left, and those items
  int64_t cut_panels, cut_items;  // panels that lack some, and those
};

int64_t items_in(const Source& source, int64_t first, int64_t last) {
  const int64_t items = (last - first) * kLanes;
  return last < source.n_panels ? items : items - kLanes + __builtin_popcount(source.last_lanes);
}

// Calls visit(panel, left, cut) for runs of four panels, or of one, that a filter takes items from: bit i
// of a word is item 16 panel + i.
template <class Visit>
void visit_cut(const Source& source, int64_t first, int64_t last, const Visit& visit) {
  int64_t panel = first;
  for (; panel + 4 <= std::min(last, source.n_panels - 1); panel += 4) {
    uint64_t left;
    std::memcpy(&left, source.eligible + panel, sizeof left);
    if (~left) visit(panel, left, ~left);
  }
  for (; panel < last; ++panel) {
    const uint64_t left = source.eligible[panel], cut = items_of(source, panel) & ~left;
    if (cut) visit(panel, left, cut);
  }
}

int panels_in(uint64_t items) {
  int count = 0;
  for (; items; items >>= kLanes) count += (items & 0xFFFFu) != 0;
  return count;
}

// One ranking from a table.
class Draw : public FromTable {
 public:
  Draw(const Kernels& kernels, const Source& source, const Table& table, const Policy& policy,
       const std::vector<Cut>& cuts, int64_t k, Interrupt* interrupt)
      : kernels_(kernels),
        source_(source),
        table_(table),
        inv_t_(1.0 / policy.temperature),
        interrupt_(interrupt),
        stream_(policy.seed, 0, kTableDraws),
        cell_panels_(cell_panels(source.n_panels)),
        n_cells_(cell_count(source.n_panels)),
        depths_(table.depths, table.depths + n_cells_),
        scored_of_(size_t(std::min(k, n_cells_))),
        weights_(static_cast<size_t>(n_cells_)),
        sums_(size_t((n_cells_ + kBlock - 1) / kBlock)) {
    for (const Cut& cut : cuts) {
      if (cut.items > 0) {
        loose_.push_back(cut);
      } else {
        depths_[size_t(cut.cell)] = kGone;
      }
    }
  }

  // What can be known before a number is drawn; false if it takes more than so many panels.
  bool prepare(int64_t panels) {
    allowance_ = panels;
    move_unit();
    settle();
    const bool done = allowance_ >= 0;
    allowance_ = std::numeric_limits<int64_t>::max();
    return done;
  }

  void rank(Ranking* out) override {
    const int64_t wanted = out->count;
    for (out->count = 0; out->count < wanted;) {
      interrupt_->check(1);
      double budget = stream_.uniform() * settle();
      const int64_t block = pick(sums_.data(), int64_t(sums_.size()), &budget);
      if (block < 0) break;  // a damaged catalog's numbers
      const int64_t first = block * kBlock;
      const int64_t cell =
          first + pick(&weights_[size_t(first)], std::min(kBlock, n_cells_ - first), &budget);
      if (cell < first) break;  // likewise
      if (!scored_of_.contains(cell)) score(cell);
      take(&scored_[size_t(*scored_of_.find(cell))], out);
    }
    // Relative to a score: in a sum with a large one the logarithms would be lost.
    const double last = out->count > 0 ? double(out->scores[out->count - 1]) : table_.reference;
    const double left = settle();
    const Mass rest = {
        left > 0.0 ? left * exp(unit_.log + (unit_.score - last) * inv_t_) : 0.0, last};
    out->log_norm =
        conditional(out->scores, out->count, rest, 1.0 / inv_t_, out->log_propensities);
    out->n_scored = n_scored_;
  }

 private:
  struct Scored {
    int64_t cell;
    int64_t panel;  // the first
    size_t at;      // where the cell's panels begin in what is kept
    int64_t panels;
    float highest;
    double mass;  // relative to it
  };

  // ---- Masses: weights_[cell], in units of exp(unit_.log) relative to unit_.score --------------

  struct Unit {
    double score, log;
  };

  // The unit becomes the largest mass that is left.
  void move_unit() {
    uint32_t shallowest = kDeep;
    for (const uint32_t depth : depths_) shallowest = std::min(shallowest, depth);
    unit_ = {table_.reference, table_.largest};
    double largest = shallowest < kDeep ? -kStep * double(shallowest) : -kInfinity;
    const Scored* best = nullptr;
    for (const Scored& each : scored_) {
      if (!(log_mass(each) > largest)) continue;
      largest = log_mass(each);
      best = &each;
    }
    if (!(largest > -kStep * double(kDeep) + 128.0) && score_the_deep()) return move_unit();
    if (largest == -kInfinity) {  // nothing is left
      std::fill(weights_.begin(), weights_.end(), 0.0f);
      std::fill(sums_.begin(), sums_.end(), 0.0);
      loose_weight_ = 0.0;
      return;
    }
    uint32_t depth = kDeep;  // beside a unit of no table's range all that counts is scored
    if (largest > -kStep * double(kDeep)) {
      depth = largest < 0.0 ? uint32_t(-largest / kStep) : 0u;
      unit_.log -= kStep * double(depth);
    } else {
      unit_ = {double(best->highest), log(best->mass)};
    }
    kernels_.weigh_depths(depths_.data(), n_cells_, depth, weights_.data());
    for (const Scored& each : scored_) weights_[size_t(each.cell)] = float(exp(log_mass(each)));
    for (size_t block = 0; block < sums_.size(); ++block) add_up(int64_t(block));
    weigh_loose();
  }

  // In units. A difference of scores is exact, where one of two quotients by T would not be.
  double log_mass(const Scored& cell) const {
    return log(cell.mass) + (double(cell.highest) - unit_.score) * inv_t_ - unit_.log;
  }

  void add_up(int64_t block) {
    const int64_t first = block * kBlock;
    sums_[size_t(block)] = sum_of(&weights_[size_t(first)], std::min(kBlock, n_cells_ - first));
  }

  void set_weight(int64_t cell, double weight) {
    weights_[size_t(cell)] = float(weight);
    add_up(cell / kBlock);
  }

  double total() const { return sum_of(sums_.data(), int64_t(sums_.size())); }

  // The mass of all that is left, where what the next draw needs is known.
  double settle() {
    for (;;) {
      double all = total();
      if (all < kLow) {
        move_unit();
        all = total();
        if (!(all >= kLow)) return all;  // nothing is left
      }
      if (!(loose_weight_ > kLoose * all) || allowance_ < 0) return all;
      tighten(kLoose * all / double(loose_.size()));
    }
  }

  // ---- Cells that are scored -------------------------------------------------------------------

  void score(int64_t cell) {
    Scored each = {cell, cell * cell_panels_, lanes_.size(), 0, 0.0f, 0.0};
    each.panels = std::min(cell_panels_, source_.n_panels - each.panel);
    const size_t end = each.at + size_t(each.panels);
    interrupt_->check(each.panels);
    lanes_.resize(end);
    scores_.resize(end * kLanes);
    item_weights_.resize(end * kLanes);
    panel_sums_.resize(end);
    Cell out = {&scores_[each.at * kLanes], &item_weights_[each.at * kLanes],
                &panel_sums_[each.at], 0.0f};
    alignas(64) float room[kMostCellPanels * kLanes];
    const Source& source =
        wants_tile(source_) ? filled(kernels_, source_, each.panel, each.panels, room) : source_;
    each.mass = kernels_.weigh_cell(source, each.panel, each.panels, float(inv_t_), &out);
    each.highest = out.highest;
    for (int64_t i = 0; i < each.panels; ++i) {
      const uint16_t lanes = uint16_t(lanes_of(source_, each.panel + i));
      lanes_[each.at + size_t(i)] = lanes;
      n_scored_ += __builtin_popcount(lanes);
    }
    scored_of_[cell] = int64_t(scored_.size());
    depths_[size_t(cell)] = kGone;
    scored_.push_back(each);
    set_weight(cell, exp(log_mass(each)));
    const auto found =
        std::lower_bound(loose_.begin(), loose_.end(), cell,
                         [](const Cut& cut, int64_t its_cell) { return cut.cell < its_cell; });
    if (found == loose_.end() || found->cell != cell) return;
    loose_.erase(found);
    weigh_loose();
  }

  // Whether there were any.
  bool score_the_deep() {
    std::vector<int64_t> deep;
    for (int64_t cell = 0; cell < n_cells_; ++cell)
      if (depths_[size_t(cell)] >= kDeep && depths_[size_t(cell)] != kGone) deep.push_back(cell);
    allowance_ -= int64_t(deep.size()) * cell_panels_;
    if (allowance_ < 0) return false;
    for (const int64_t cell : deep) score(cell);
    return !deep.empty();
  }

  void take(Scored* cell, Ranking* out) {
    double budget = stream_.uniform() * cell->mass;
    const int64_t panel = pick(&panel_sums_[cell->at], cell->panels, &budget);
    if (panel < 0) return;  // its weight is 0 now
    const size_t at = cell->at + size_t(panel);
    const int64_t lane = pick(&item_weights_[at * kLanes], kLanes, &budget);
    if (lane < 0) {  // a damaged catalog's numbers
      panel_sums_[at] = 0.0f;
      cell->mass = 0.0;
      return set_weight(cell->cell, 0.0);
    }
    out->positions[out->count] = (cell->panel + panel) * kLanes + lane;
    out->scores[out->count] = scores_[at * kLanes + size_t(lane)];
    ++out->count;
    lanes_[at] = uint16_t(lanes_[at] & ~(1u << lane));
    item_weights_[at * kLanes + size_t(lane)] = 0.0f;
    panel_sums_[at] = float(sum_of(&item_weights_[at * kLanes], kLanes));
    cell->mass = sum_of(&panel_sums_[cell->at], cell->panels);
    if (cell->mass < kLow) weigh_anew(cell);
    set_weight(cell->cell, exp(log_mass(*cell)));
  }

  // Relative to the highest score that is left.
  void weigh_anew(Scored* cell) {
    float highest = -std::numeric_limits<float>::infinity();
    for (size_t at = cell->at; at < cell->at + size_t(cell->panels); ++at)
      for (uint32_t rest = lanes_[at]; rest; rest &= rest - 1)
        highest = std::max(highest, scores_[at * kLanes + size_t(__builtin_ctz(rest))]);
    cell->highest = highest;
    for (size_t at = cell->at; at < cell->at + size_t(cell->panels); ++at)
      panel_sums_[at] = kernels_.weigh(&scores_[at * kLanes], lanes_[at], highest, float(inv_t_),
                                       &item_weights_[at * kLanes]);
    cell->mass = sum_of(&panel_sums_[cell->at], cell->panels);
  }

  // ---- Filters ---------------------------------------------------------------------------------
  //
  // A table holds the masses of whole cells. What a filter takes from a cell is scored and taken off
  // where it is the minor part, so that no digit is lost; else what it leaves is scored. Neither is
  // done for a cell before its mass counts: until then it is loose.

  void weigh_loose() {
    loose_weight_ = 0.0;
    for (const Cut& each : loose_) loose_weight_ += double(weights_[size_t(each.cell)]);
  }

  // Looks at the cells of more weight than this.
  void tighten(double weight) {
    std::vector<int64_t> dear;  // cells of which less is left than cut
    pieces_.clear();
    size_t kept = 0;
    for (const Cut& each : loose_) {
      if (!(double(weights_[size_t(each.cell)]) > weight)) {
        loose_[kept++] = each;
      } else if (each.cut_panels >= each.panels) {
        dear.push_back(each.cell);
      } else {
        list_cut(each.cell);
      }
    }
    loose_.resize(kept);
    take_off(&dear);
    allowance_ -= int64_t(dear.size()) * cell_panels_;
    if (allowance_ < 0) return;
    for (const int64_t cell : dear) score(cell);
    for (size_t block = 0; block < sums_.size(); ++block) add_up(int64_t(block));
    weigh_loose();
  }

  // What a filter takes from a panel.
  struct Piece {
    int64_t cell, panel;
    uint32_t lanes;
  };

  void list_cut(int64_t cell) {
    const int64_t first = cell * cell_panels_;
    visit_cut(source_, first, std::min(first + cell_panels_, source_.n_panels),
              [&](int64_t panel, uint64_t, uint64_t cut) {
                for (; cut; ++panel, cut >>= kLanes)
                  if (cut & 0xFFFFu) pieces_.push_back({cell, panel, uint32_t(cut & 0xFFFFu)});
              });
  }

  // Takes the excluded items of cells off their masses, where they are the minor part; the other cells
  // are added to `dear`.
  void take_off(std::vector<int64_t>* dear) {
    for (size_t i = 0; i < pieces_.size();) {
      const int64_t cell = pieces_[i].cell;
      uint32_t& depth = depths_[size_t(cell)];
      const double log_cell = table_.largest - kStep * double(depth);
      double share = 0.0;
      for (; i < pieces_.size() && pieces_[i].cell == cell; ++i) {
        if (i + kPiecesAhead < pieces_.size()) fetch(pieces_[i + kPiecesAhead].panel);
        share += weigh_piece(pieces_[i], log_cell);
      }
      if (!(share <= 0.5)) {
        dear->push_back(cell);
        continue;
      }
      const double less = -log1p(-share) / kStep;
      depth = uint32_t(std::min(double(depth) + less + 0.5, double(kDeep - 1)));
      weights_[size_t(cell)] = float(double(weights_[size_t(cell)]) * (1.0 - share));
    }
  }

  double weigh_piece(const Piece& piece, double log_cell) {
    interrupt_->check(1);
    int64_t positions[kLanes];
    float scores[kLanes], all[kLanes];
    int count = 0;
    for (uint32_t rest = piece.lanes; rest; rest &= rest - 1)
      positions[count++] = piece.panel * kLanes + __builtin_ctz(rest);
    if (source_.vectors) {
      kernels_.score_rows(source_, positions, count, scores);
    } else {
      kernels_.score_panel(source_, piece.panel, all);
      for (int i = 0; i < count; ++i) scores[i] = all[positions[i] % kLanes];
    }
    n_scored_ += count;
    double sum = 0.0;
    for (int i = 0; i < count; ++i)
      sum += exp((double(scores[i]) - table_.reference) * inv_t_ - log_cell);
    return sum;
  }

  // A panel somewhere, into the first cache; of rows, few are wanted.
  void fetch(int64_t panel) const {
    if (source_.vectors) return;
    const float* from = source_.panels + panel * source_.dim * kLanes;
    for (int64_t i = 0; i < source_.dim; ++i) __builtin_prefetch(from + i * kLanes);
  }

  const Kernels& kernels_;
  const Source& source_;
  const Table table_;
  const double inv_t_;
  Interrupt* const interrupt_;
  Stream stream_;
  const int64_t cell_panels_, n_cells_;
  std::vector<uint32_t> depths_;    // of the cells that are not scored; else kGone
  FlatMap<int64_t> scored_of_;    // by cell: which of scored_ it is
  std::vector<float> weights_;    // by cell
  std::vector<double> sums_;        // of kBlock of them
  Unit unit_ = {0.0, 0.0};
  std::vector<Scored> scored_;
  std::vector<uint16_t> lanes_;  // of the panels of scored cells: the items that are left
  std::vector<float> scores_, item_weights_, panel_sums_;
  std::vector<Cut> loose_;  // in order
  std::vector<Piece> pieces_;
  double loose_weight_ = 0.0;
  int64_t n_scored_ = 0;
  int64_t allowance_ = 0;  // panels of cells that may still be scored
};

std::vector<Cut> cut_cells(const Source& source) {
  std::vector<Cut> cuts;
  if (!source.eligible) return cuts;
  const int64_t size = cell_panels(source.n_panels), cells = cell_count(source.n_panels);
  for (int64_t cell = 0; cell < cells; ++cell) {
    const int64_t first = cell * size, last = std::min(first + size, source.n_panels);
    Cut cut = {cell, last - first, items_in(source, first, last), 0, 0};
    visit_cut(source, first, last, [&](int64_t, uint64_t left, uint64_t gone) {
      cut.items -= __builtin_popcountll(gone);
      cut.cut_items += __builtin_popcountll(gone);
      cut.panels -= panels_in(left | gone) - panels_in(left);
      cut.cut_panels += panels_in(gone);
    });
    if (cut.cut_items) cuts.push_back(cut);
  }
  return cuts;
}

// Of a pass over n panels, what as many of them take that are scored here and there.
struct Price {
  double pieces, cells;  // one panel of a cell, and all panels of it
};

Price price_of(const Source& source, bool has_codes) {
  const double price = has_codes ? 1.0 / 3 : 1.0;
  return {price / (source.vectors ? 4.0 : 2.0) * double(source.n_panels),
          price / 2.0 * double(source.n_panels)};
}

}  // namespace

std::unique_ptr<FromTable> from_table(const Kernels& kernels, const Source& source,
                                      const Table& table, const Policy& policy, int64_t k,
                                      bool has_codes, Interrupt* interrupt) {
  const std::vector<Cut> cuts = cut_cells(source);
  const Price most = price_of(source, has_codes);
  double pieces = 0.0;
  for (const Cut& cut : cuts)
    pieces += double(std::min(source.vectors ? cut.cut_items / 4 : cut.cut_panels, cut.panels));
  if (pieces > most.pieces) return nullptr;
  auto draw = std::make_unique<Draw>(kernels, source, table, policy, cuts, k, interrupt);
  if (!draw->prepare(int64_t(most.cells))) return nullptr;
  return draw;
}

// ---- Making tables --------------------------------------------------------------------------

namespace {

constexpr int64_t kUsersTogether = 64;  // who share the panels of a tile

class Maker {
 public:
  Maker(const Kernels& kernels, const Catalog& catalog, const Request* requests,
        const double* temperatures, int64_t count, Interrupt* interrupt)
      : kernels_(kernels),
        temperatures_(temperatures),
        count_(count),
        interrupt_(interrupt),
        n_panels_(panel_count(catalog.n_items)),
        cell_panels_(cell_panels(n_panels_)),
        n_cells_(cell_count(n_panels_)) {
    faults_.assign(size_t(count), kNoFault);
    for (int64_t i = 0; i < count; ++i)
      sources_.push_back(make_source(catalog, requests[i], &faults_[size_t(i)]));
    masses_.resize(size_t(count * n_cells_));
    // As in SharedPass: what the next tile brings fits the second cache beside this one.
    const int64_t panels = std::clamp<int64_t>(1024 / std::max(catalog.dim, 1) / 8 * 8, 8, kTilePanels);
    tile_panels_ = std::max(cell_panels_, panels / cell_panels_ * cell_panels_);
  }

  // Any number of threads at a time: each takes the tiles that come next.
  void work() {
    std::vector<Source> sources = sources_;
    std::vector<float> dots(size_t(kMaxTileUsers * tile_panels_ * kLanes));
    std::vector<float> scores(size_t(cell_panels_ * kLanes)), weights(scores.size());
    std::vector<float> sums(static_cast<size_t>(cell_panels_));
    Cell out = {scores.data(), weights.data(), sums.data(), 0.0f};
    for (int64_t first; (first = next_.fetch_add(tile_panels_)) < n_panels_;) {
      if (interrupt_->stop(tile_panels_ * count_)) return;
      const int64_t panels = std::min(tile_panels_, n_panels_ - first);
      for (int64_t user = 0; user < count_; user += kernels_.tile_users) {
        const int users = int(std::min<int64_t>(kernels_.tile_users, count_ - user));
        if (sources_[0].panels && count_ > 1) score(&sources, user, users, first, panels, &dots);
        for (int64_t i = user; i < user + users; ++i)
          for (int64_t panel = first; panel < first + panels; panel += cell_panels_)
            weigh(sources[size_t(i)], i, panel, &out);
      }
    }
  }

  // What the first user's function made who has such a score.
  Code fault(int64_t* row, int64_t* where) const {
    Code code = kOk;
    for (*row = 0; *row < count_ && code == kOk; ++*row)
      code = code_of_fault(faults_[size_t(*row)], where);
    if (code != kOk) --*row;
    return code;
  }

  void finish(uint32_t* depths, double* tops) const {
    std::vector<double> logs(static_cast<size_t>(n_cells_));
    for (int64_t user = 0; user < count_; ++user) {
      const Mass* masses = &masses_[size_t(user * n_cells_)];
      double reference = masses[0].reference, largest = -kInfinity;
      for (int64_t cell = 1; cell < n_cells_; ++cell)
        reference = std::max(reference, masses[cell].reference);
      for (int64_t cell = 0; cell < n_cells_; ++cell) {
        logs[size_t(cell)] = log(masses[cell].value) +
                             (masses[cell].reference - reference) * (1.0 / temperatures_[user]);
        largest = std::max(largest, logs[size_t(cell)]);
      }
      tops[2 * user] = reference;
      tops[2 * user + 1] = largest;
      for (int64_t cell = 0; cell < n_cells_; ++cell) {
        const double depth = (largest - logs[size_t(cell)]) / kStep + 0.5;
        depths[user * n_cells_ + cell] = depth < double(kDeep) ? uint32_t(depth) : kDeep;
      }
    }
  }

 private:
  void score(std::vector<Source>* sources, int64_t user, int users, int64_t first, int64_t panels,
             std::vector<float>* dots) const {
    const Source* group[kMaxTileUsers];
    for (int i = 0; i < users; ++i) group[i] = &sources_[size_t(user + i)];
    const int64_t lines = group[0]->dim, next = first + panels;
    const int64_t groups = (count_ + kernels_.tile_users - 1) / kernels_.tile_users;
    const int64_t share = std::min(tile_panels_, n_panels_ - next) * lines / groups;
    const Ahead ahead = {
        group[0]->panels + (next * lines + user / kernels_.tile_users * share) * kLanes, share,
        nullptr, 0, 0};
    kernels_.score_tile(group, users, first, panels, ahead, dots->data());
    for (int i = 0; i < users; ++i) {
      float* const own = dots->data() + i * panels * kLanes;
      if (group[i]->function) kernels_.apply(*group[i], first, panels, own);
      (*sources)[size_t(user + i)].tile = {own, first};
    }
  }

  void weigh(const Source& source, int64_t user, int64_t panel, Cell* out) {
    const int64_t panels = std::min(cell_panels_, n_panels_ - panel);
    alignas(64) float room[kMostCellPanels * kLanes];
    const Source& its = !source.tile.dots && wants_tile(source)
                            ? filled(kernels_, source, panel, panels, room)
                            : source;
    const double mass =
        kernels_.weigh_cell(its, panel, panels, float(1.0 / temperatures_[user]), out);
    masses_[size_t(user * n_cells_ + panel / cell_panels_)] = {mass, double(out->highest)};
  }

  const Kernels& kernels_;
  const double* temperatures_;
  const int64_t count_;
  Interrupt* const interrupt_;
  const int64_t n_panels_, cell_panels_, n_cells_;
  int64_t tile_panels_;
  std::vector<Source> sources_;
  std::vector<int64_t> faults_;
  std::vector<Mass> masses_;  // a row a user
  std::atomic<int64_t> next_{0};
};

}  // namespace

int64_t table_size(int64_t n_items) { return cell_count(panel_count(n_items)); }

Code make_tables(const Catalog& catalog, const Request* requests, const double* temperatures,
                 int64_t count, int64_t threads, const Poll& poll, uint32_t* depths,
                 double* tops, int64_t* row, int64_t* where) {
  Interrupt interrupt(poll);
  Largest largest;
  for (*row = 0; *row < count; ++*row) {
    const Code code = check_request(catalog, requests[*row], where, &largest);
    if (code != kOk) return code;
  }
  const int64_t cells = table_size(catalog.n_items);
  try {
    for (int64_t first = 0; first < count; first += kUsersTogether) {
      Maker maker(kernels(), catalog, requests + first, temperatures + first,
                  std::min(kUsersTogether, count - first), &interrupt);
      std::atomic<bool> failed{false};
      on_threads(threads, &interrupt, [&](int64_t) {
        try {
          maker.work();
        } catch (const std::bad_alloc&) {
          failed = true;
        }
      });
      if (interrupt.stopped()) return kInterrupted;
      if (failed) return kOutOfMemory;
      if (const Code code = maker.fault(row, where); code != kOk) {
        *row += first;
        return code;
      }
      maker.finish(depths + first * cells, tops + 2 * first);
    }
    return kOk;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

}  // namespace fastrank
