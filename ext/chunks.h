// A pass over the catalog: its chunks, the users who share each panel while it is in the caches,
// and the threads that share the chunks. The passes themselves are in rank.cpp.
//
// A pass depends only on its own user and chunk, so neither the users beside it nor the number of
// threads can change a bit of its result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <thread>

#include "arena.h"
#include "sampling.h"

namespace fastrank {

// Values that tests may force (probes.h); 0 for none.
struct Forced {
  std::atomic<int64_t> chunk_panels{0};  // a chunk size instead of the chunk law's
  std::atomic<int64_t> few_items{0};  // codes are used from so many eligible items on
};

// If more than one item in so many has to be scored, float32 vectors cost less than codes. A long
// row at a random place costs as much as two or three that are read in order, a short one as much
// as five or six.
inline int64_t costly_share(const Source& source) {
  return source.dim < 96 ? 12 : source.dim < 192 ? 8 : 4;
}

// The chunk law (kernels.h).
struct ChunkLaw {
  int64_t n_panels, chunk_panels;
  int64_t pilot, step;  // the pilot is panels 0, step, 2 step, ..., `pilot` of them

  ChunkLaw(int64_t n_items, int64_t k) : n_panels(panel_count(n_items)) {
    chunk_panels = 1024 * ((k + 255) / 256);
    if (const int64_t panels = forced()->chunk_panels.load(std::memory_order_relaxed))
      chunk_panels = panels;
    const int64_t items = std::min(std::max(n_items / 256, 64 * k), n_items / 16);
    pilot = std::max<int64_t>(1, items / kLanes);
    step = n_panels / pilot;
  }

  int64_t chunks() const { return (n_panels + chunk_panels - 1) / chunk_panels; }

  // The chunks that share a floor are those from a power of two up to the next. All chunks before
  // them must be merged before one of them can begin.
  static int64_t group_of(int64_t c) {
    int64_t first = c > 0;
    while (2 * first <= c && first > 0) first *= 2;
    return first;
  }

  // How many chunks can run at a time: more threads would only wait.
  int64_t widest_group() const {
    const int64_t last = group_of(chunks() - 1);
    return std::max<int64_t>({1, last / 2, chunks() - last});
  }

  // How many items a pass over codes may note in a chunk: half as many again as may be scored, plus
  // a few.
  int64_t noted_room(const Source& source) const {
    const int64_t panels = std::min(chunk_panels, n_panels);
    return (3 * panels / (2 * costly_share(source)) + kLanes) * kLanes;
  }

  Scan pilot_walk() const {
    Scan walk = {};
    walk.step = step;
    walk.count = pilot;
    // Golden-ratio steps: panels stored in ascending order become a sequence with few records.
    walk.stride = std::max<int64_t>(1, int64_t(double(pilot) * 0.6180339887498949));
    while (std::gcd(walk.stride, pilot) != 1) ++walk.stride;
    return walk;
  }

  // Calls visit(walk) for each walk of chunk c: the pilot first, then runs between its panels.
  template <class Visit>
  void walks(int64_t c, Visit visit) const {
    if (c == 0) visit(pilot_walk());
    const int64_t end = std::min(n_panels, (c + 1) * chunk_panels);
    for (int64_t panel = c * chunk_panels; panel < end;) {
      if (panel % step == 0 && panel / step < pilot) {
        ++panel;
        continue;
      }
      const int64_t next_pilot = (panel / step + 1) * step;
      const int64_t stop = next_pilot / step < pilot ? std::min(end, next_pilot) : end;
      Scan walk = {};
      walk.first = panel;
      walk.step = walk.stride = 1;
      walk.count = stop - panel;
      visit(walk);
      panel = stop;
    }
  }
};

constexpr int kRowsAhead = 32;

// What one user's policy does with the panels. A chunk is begin, its walks in order, end; a run of
// panels may come in any number of consecutive pieces. Nothing here throws, or allocates beyond the
// room that `out` has, but std::bad_alloc where an arena has no room for what is noted.
class Pass {
 public:
  explicit Pass(Order its_order) : order(its_order) {}
  virtual ~Pass() = default;
  virtual void begin(int64_t chunk, const Outlook*, Partial* out) = 0;
  virtual void walk(Scan scan) = 0;
  virtual void end() = 0;
  // Over codes: float32 rows that will most likely be scored, at most kRowsAhead, to be fetched; and
  // scores them. When a row is scored changes no bit: of a walk in between neither.
  virtual int rows_ahead(const float**) { return 0; }
  virtual void score_ahead() {}

  const Order order;
};

// All are borrowed.
std::unique_ptr<Pass> make_pass(const Kernels&, const Source&, const Policy&, const ChunkLaw&,
                                Arena*);

// ---- Threads --------------------------------------------------------------------------------

// Runs work(0), ..., work(threads - 1) at the same time, the first on this thread, and returns when
// all have returned. Threads live only during the call, so none can be missing after a fork. If one
// cannot be started, its work is not called: the others must be able to do it. `work` must not
// throw.
template <class Work>
void on_threads(int64_t threads, Interrupt* interrupt, const Work& work) {
  if (threads == 1) return work(0);
  std::mutex mutex;
  std::condition_variable all_ended;
  int64_t running = 0;
  std::vector<std::thread> others;
  const auto run = [&](int64_t i) {
    work(i);
    const std::lock_guard<std::mutex> lock(mutex);
    if (--running == 0) all_ended.notify_all();
  };
  const auto count_one = [&](int64_t more) {
    const std::lock_guard<std::mutex> lock(mutex);
    running += more;
  };
  try {
    others.reserve(size_t(threads - 1));
    for (int64_t i = 1; i < threads; ++i) {
      count_one(1);
      try {
        others.emplace_back(run, i);
      } catch (const std::exception&) {
        count_one(-1);
        throw;
      }
    }
  } catch (const std::exception&) {  // no memory, or no more threads for this process
  }
  work(0);
  // Meanwhile the caller may want to stop.
  while (interrupt->asks() && !interrupt->stopped()) {
    std::unique_lock<std::mutex> lock(mutex);
    if (all_ended.wait_for(lock, Interrupt::kInterval, [&] { return running == 0; })) break;
    lock.unlock();
    interrupt->ask();
  }
  for (std::thread& other : others) other.join();
}

// Waits by spinning, for what other threads do within microseconds; waking from sleep can take
// longer than a chunk. Yields the core if it takes long. Returns early on an interrupt.
template <class Condition>
void wait_until(Interrupt* interrupt, const Condition& condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins >= 2000) {
      if (interrupt->stop(64)) return;  // a core given away may come back late
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// ---- Users who share a pass -----------------------------------------------------------------

// One pass over all chunks for one user or several. Worker w of `threads` calls work(w), on its own
// thread; if some workers do not, the others do the rest.
//
// Chunks are handed out in order. A chunk may begin when all chunks before its group are merged,
// which fixes its floor, and when its slot is free; the first chunk not yet merged never waits, so
// all of them end.
class SharedPass {
 public:
  struct Member {
    const Source* source;
    const Policy* policy;
    int64_t capacity;  // how many items to keep
  };

  SharedPass(const Kernels& kernels, const ChunkLaw& law, const std::vector<Member>& members,
             int64_t threads, Interrupt* interrupt)
      : kernels_(kernels),
        law_(law),
        interrupt_(interrupt),
        slots_(threads == 1 ? 1 : 2 * threads),
        done_(size_t(slots_), 0),
        arenas_(size_t(threads)),
        seats_(size_t(threads)) {
    size_t noted = 0;
    for (const Member& member : members)
      if (notes(member)) noted += sizeof(Noted) * size_t(law.noted_room(*member.source));
    // What a pass notes of a chunk, and about as much that stays.
    if (noted > 0)
      for (Arena& arena : arenas_) arena.reserve(2 * noted);
    for (const Member& member : members) {
      for (size_t i = 0; i < seats_.size(); ++i)
        seats_[i].emplace_back(kernels, member, law, &arenas_[i]);
      const Order order = seats_[0].back().pass->order;
      results_.emplace_back(member.capacity, order, slots_);
      if (notes(member)) results_.back().make_room(law.chunks());
      if (member.source->labels) results_.back().make_room(*member.source);
    }
  }

  // Takes chunks in order until none is left, or until an interrupt: then its current chunk is
  // never merged, and workers that wait for it give up too.
  void work(int64_t worker) {
    std::deque<Seat>& seats = seats_[size_t(worker)];
    for (;;) {
      const int64_t c = next_.fetch_add(1, std::memory_order_relaxed);
      if (c >= law_.chunks()) return;
      const int64_t before = std::max(ChunkLaw::group_of(c), c - slots_ + 1);
      wait_until(interrupt_, [&] { return merged_.load(std::memory_order_acquire) >= before; });
      if (interrupt_->stopped()) return;
      try {
        pass_over(c, seats);
      } catch (const std::bad_alloc&) {  // the others must not wait for this chunk
        out_of_memory_ = true;
      }
      if (interrupt_->stopped()) return;
      merge(c);
    }
  }

  // After all work: user i's items, best first, and the mass of the others.
  Partial& result(size_t i) {
    if (out_of_memory_) throw std::bad_alloc();
    interrupt_->check(0);
    results_[i].total.sort(interrupt_);
    return results_[i].total;
  }

 private:
  // A user as one worker sees it. It must stay where it is: the pass refers to the source.
  struct Seat {
    Seat(const Kernels& kernels, const Member& member, const ChunkLaw& law, Arena* arena)
        : source(*member.source), pass(make_pass(kernels, source, *member.policy, law, arena)) {}
    Seat(const Seat&) = delete;

    Source source;  // with the worker's own tile
    std::unique_ptr<Pass> pass;
  };

  struct Result {
    Result(int64_t capacity, Order order, int64_t slots) : total(capacity, order) {
      parts.reserve(size_t(slots));
      for (int64_t i = 0; i < slots; ++i) parts.emplace_back(capacity, order);
    }

    // For what passes note, chunk by chunk.
    void make_room(int64_t chunks) {
      total.noted.reserve(size_t(chunks));
      for (Partial& part : parts) part.noted.reserve(1);
    }

    // For masses by label.
    void make_room(const Source& source) {
      total.labels.make_room(source);
      for (Partial& part : parts) part.labels.make_room(source);
    }

    // Chunk 0 is the start of the total.
    Partial* part(int64_t c) { return c == 0 ? &total : &parts[size_t(c) % parts.size()]; }

    Partial total;
    std::vector<Partial> parts;  // of chunks not yet merged
    Outlook outlook = {};
    bool has_outlook = false;
  };

  void pass_over(int64_t c, std::deque<Seat>& seats) {
    for (size_t i = 0; i < seats.size(); ++i) {
      Result& result = results_[i];
      Partial* part = result.part(c);
      part->clear();
      seats[i].pass->begin(c, result.has_outlook ? &result.outlook : nullptr, part);
    }
    law_.walks(c, [&](const Scan& walk) { walk_together(seats, walk); });
    if (interrupt_->stopped()) return;
    for (Seat& seat : seats) seat.pass->end();
  }

  static bool notes(const Member& member) {
    return member.source->codes && member.policy->kind == kGumbel;
  }

  // Takes each user's pass along a walk. Two or more users go tile by tile: they score the panels
  // together, while these are in registers, then each goes over its own scores.
  void walk_together(std::deque<Seat>& seats, const Scan& walk) {
    // The pilot is scattered, and small; given scores are each user's own.
    if (walk.step != 1 || walk.stride != 1 || seats[0].source.scores ||
        (seats.size() == 1 && !wants_tile(seats[0].source))) {
      for (Seat& seat : seats) {
        if (interrupt_->stop(walk.count)) return;
        seat.pass->walk(walk);
      }
      return;
    }
    // The panels of a tile stay in a core's second-level cache while all users pass, and the next
    // tile's panels are fetched meanwhile: each group of users fetches its share. A multiple of 8:
    // scans over codes sum by eight.
    const Source* shared = &seats[0].source;
    for (const Seat& seat : seats)
      if (seat.source.codes) shared = &seat.source;
    const Source& any = *shared;
    const int64_t panel_lines = any.codes ? (any.dim + 3) / 4 : any.dim;
    // Over codes more panels share the fixed cost of a walk.
    const int64_t cached_lines = any.codes ? 4096 : 1024;
    const int64_t panels =
        seats.size() == 1
            ? kTilePanels
            : std::clamp<int64_t>(cached_lines / panel_lines / 8 * 8, 8, kTilePanels);
    const int64_t groups = (int64_t(seats.size()) - 1) / kernels_.tile_users + 1;
    RowsAhead behind;
    for (int64_t done = 0; done < walk.count; done += panels) {
      if (interrupt_->stop(panels * int64_t(seats.size()))) return;
      Scan piece = walk;
      piece.first += done;
      piece.count = std::min(panels, walk.count - done);
      const int64_t next = piece.first + piece.count;
      const int64_t lines =
          seats.size() == 1 ? 0 : std::min(panels, any.n_panels - next) * panel_lines;
      const uint8_t* run =
          any.codes ? any.codes : reinterpret_cast<const uint8_t*>(any.panels);
      if (lines > 0) run += next * panel_lines * 64;
      Group group;
      for (Seat& seat : seats) {
        const bool alone = seat.source.vectors && !seat.source.codes;
        if ((alone && !wants_tile(seat.source)) || !mostly_eligible(seat.source, piece)) {
          seat.pass->walk(piece);
          continue;
        }
        if (alone) {
          Group own;
          own.seats[own.size++] = &seat;
          walk_tile(own, piece, nullptr, 0, nullptr);
          continue;
        }
        group.seats[group.size++] = &seat;
        if (group.size < kernels_.tile_users && &seat != &seats.back()) continue;
        walk_tile(group, piece, run, lines / groups, &behind);
        if (lines > 0) run += lines / groups * 64;
        group.size = 0;
      }
      walk_tile(group, piece, run, 0, &behind);
    }
    behind.score();
  }

  // Users whose sums fit the registers together.
  struct Group {
    Seat* seats[kMaxTileUsers];
    int size = 0;
  };

  // The rows that a group of users has found to be scored: they are fetched while the next group's
  // codes are summed, which is all arithmetic.
  struct RowsAhead {
    Group group;
    const float* rows[kMaxTileUsers * kRowsAhead];
    int count = 0;

    void find(const Group& of) {
      group = of;
      count = 0;
      for (int i = 0; i < group.size; ++i)
        count += group.seats[i]->pass->rows_ahead(rows + count);
    }

    void score() {
      for (int i = 0; i < group.size; ++i) group.seats[i]->pass->score_ahead();
      group.size = count = 0;
    }
  };

  // Source -> tile -> (function) -> pass. A single user fills no tile, unless a function needs one:
  // panels go to the pass one by one.
  void walk_tile(const Group& group, const Scan& piece, const void* run, int64_t lines,
                 RowsAhead* behind) {
    alignas(64) float dots[kMaxTileUsers * kTilePanels * kLanes];
    const Source* sources[kMaxTileUsers];
    for (int i = 0; i < group.size; ++i) sources[i] = &group.seats[i]->source;
    const bool filled = group.size > 1 || (group.size == 1 && wants_tile(*sources[0]));
    if (filled) {
      Ahead ahead = {run, lines, nullptr, 0, 0};
      if (behind) {
        ahead.rows = behind->rows;
        ahead.n_rows = behind->count;
        ahead.row_lines = (sources[0]->dim + 15) / 16;
      }
      kernels_.score_tile(sources, group.size, piece.first, piece.count, ahead, dots);
      if (behind) behind->score();
    }
    for (int i = 0; i < group.size; ++i) {
      Seat& seat = *group.seats[i];
      float* const own = dots + i * piece.count * kLanes;
      if (filled && seat.source.function)
        kernels_.apply(seat.source, piece.first, piece.count, own);
      if (filled) seat.source.tile = {own, piece.first};
      seat.pass->walk(piece);
      seat.source.tile = {};
    }
    if (filled && behind) behind->find(group);
  }

  // Whether scoring a whole tile for this user costs less than looking at its panels one by one.
  static bool mostly_eligible(const Source& source, const Scan& piece) {
    if (!source.eligible) return true;
    int64_t panels = 0;
    for (int64_t i = 0; i < piece.count; ++i) panels += source.eligible[piece.first + i] != 0;
    return 2 * panels > piece.count;
  }

  // Chunks are done in any order and merged in their own order, by the worker that makes the next
  // one ready.
  void merge(int64_t c) {
    wait_until(interrupt_, [&] { return !merging_.test_and_set(std::memory_order_acquire); });
    if (interrupt_->stopped()) return;  // nobody waits for the flag any more
    done_[size_t(c % slots_)] = 1;
    int64_t next = merged_.load(std::memory_order_relaxed);
    for (; done_[size_t(next % slots_)]; ++next) {
      done_[size_t(next % slots_)] = 0;
      for (Result& result : results_) {
        try {
          if (next > 0) result.total.merge(*result.part(next), interrupt_);
        } catch (const std::bad_alloc&) {  // the others must not wait for this chunk
          out_of_memory_ = true;
        }
        // The outlook of the group that begins here; earlier groups are finished.
        if ((next & (next + 1)) == 0 && result.total.full()) {
          result.outlook = {result.total.worst(), result.total.rest, result.total.doubt};
          result.has_outlook = true;
        }
      }
    }
    merged_.store(next, std::memory_order_release);
    merging_.clear(std::memory_order_release);
  }

  const Kernels& kernels_;
  const ChunkLaw law_;
  Interrupt* const interrupt_;
  const int64_t slots_;                  // how far chunks may run ahead of the merged ones
  std::vector<char> done_;               // by slot: a chunk is there, to be merged
  std::vector<Arena> arenas_;            // of each worker
  std::vector<std::deque<Seat>> seats_;  // likewise
  std::deque<Result> results_;           // of each user
  std::atomic<int64_t> next_{0}, merged_{0};
  std::atomic_flag merging_ = ATOMIC_FLAG_INIT;
  std::atomic<bool> out_of_memory_{false};  // in a chunk or a merge
};

}  // namespace fastrank
