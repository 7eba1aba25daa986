#include "probes.h"

#include <algorithm>
#include <limits>

#include "chunks.h"
#include "error_law.h"

namespace fastrank {

int64_t force_chunk_panels(Forced* forced, int64_t count) {
  return forced->chunk_panels.exchange(count);
}

int64_t force_few_items(Forced* forced, int64_t count) {
  return forced->few_items.exchange(count);
}

Code count_stops(const Catalog& catalog, const Request& request, float reference, int64_t row,
                 int64_t* stops, int64_t* where) {
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const Source source = make_source(catalog, request, nullptr);
  Scan scan = {};
  scan.step = scan.stride = 1;
  scan.count = source.n_panels;
  scan.reference = reference;
  scan.tie_row = row;
  scan.tie_panel = row / kLanes;
  for (*stops = 0; kernels().scan_above(source, &scan); ++*stops) {}
  return kOk;
}

Code estimate_all(const Catalog& catalog, const Request& request, float* estimates, float* uppers,
                  bool* usable, int64_t* where) {
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const CodeQuery query(catalog, request, largest);
  *usable = query.usable;
  if (!query.usable) return kOk;
  const Kernels& kernels = fastrank::kernels();
  Source source = make_source(catalog, request, nullptr);
  use_codes(catalog, query, &source);
  Noted noted[8 * kLanes];  // room for as many as a scan may note before it looks for more
  for (int64_t panel = 0; panel < source.n_panels; ++panel) {
    CodeScan scan = {};
    scan.walk.first = panel;
    scan.walk.step = scan.walk.stride = scan.walk.count = 1;
    scan.walk.limit = -1.0;  // every panel stops it
    scan.cut = std::numeric_limits<float>::infinity();
    scan.noted = noted;
    scan.room = 8 * kLanes;
    kernels.scan_codes(source, &scan);
    for (uint32_t lanes = scan.walk.lanes; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      estimates[panel * kLanes + lane] = scan.walk.scores[lane];
      uppers[panel * kLanes + lane] = scan.uppers[lane];
    }
  }
  return kOk;
}

void upper_weights(const float* uppers, int64_t n_panels, float reference, float inv_temperature,
                   float* weights) {
  const float scales[kLanes] = {};
  Source source = {};
  source.scales = scales;
  for (int64_t panel = 0; panel < n_panels; ++panel) {
    CodeScan scan = {};
    scan.walk.lanes = 0xFFFF;
    scan.walk.reference = reference;
    scan.walk.inv_temperature = inv_temperature;
    std::copy(uppers + panel * kLanes, uppers + (panel + 1) * kLanes, scan.uppers);
    kernels().weigh_codes(source, &scan);
    std::copy(scan.walk.weights, scan.walk.weights + kLanes, weights + panel * kLanes);
  }
}

Code bound_all(const Catalog& catalog, const Request& request, double temperature, float reference,
               float* weights, double* sum, bool* linear, bool* usable, int64_t* where) {
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const CodeQuery query(catalog, request, largest);
  *usable = query.usable;
  if (!query.usable) return kOk;
  Source source = make_source(catalog, request, nullptr);
  use_codes(catalog, query, &source);
  const ErrorLaw law(query, temperature);
  const WeightBound bound(source, law, temperature);
  *linear = bound.linear;
  Noted noted[8 * kLanes];  // room for as many as a scan may note before it looks for more
  CodeScan scan = {};
  scan.walk.step = scan.walk.stride = 1;
  scan.walk.count = source.n_panels;
  scan.walk.reference = reference;
  scan.walk.inv_temperature = float(1.0 / temperature);
  scan.walk.limit = kInfinity;
  scan.deviation = float(law.deviation);
  scan.noting = float(law.noting);
  scan.cut = std::numeric_limits<float>::infinity();
  scan.noted = noted;
  scan.room = 8 * kLanes;
  bound.give(&scan);
  const CodeScan start = scan;
  kernels().scan_codes(source, &scan);
  *sum = scan.walk.mass;
  scan = start;
  scan.walk.limit = -1.0;  // every panel stops it
  while (kernels().scan_codes(source, &scan))
    std::copy(scan.walk.weights, scan.walk.weights + kLanes, weights + scan.walk.panel * kLanes);
  return kOk;
}

Code error_bound(const Catalog& catalog, const Request& request, double temperature,
                 const double* sums, int64_t n_heavy, double* bound, double* noting,
                 double* window, bool* usable, int64_t* where) {
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const CodeQuery query(catalog, request, largest);
  *usable = query.usable;
  if (!query.usable) return kOk;
  const ErrorLaw law(query, temperature);
  *bound = law.bound({sums[0], sums[1], sums[2], sums[3]}, n_heavy);
  *noting = law.noting;
  *window = law.window;
  return kOk;
}

}  // namespace fastrank
