// Which instruction set runs: chosen once, from what the CPU says.

#include <atomic>
#include <cstring>

#include "kernels.h"

namespace fastrank {

extern const Kernels kernels_v2;
#if defined(__x86_64__)
extern const Kernels kernels_v3, kernels_v4, kernels_v4_vnni;
#endif

namespace {

const Kernels* table(int index) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (index == 0) return __builtin_cpu_supports("sse4.2") ? &kernels_v2 : nullptr;
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (index == 1) return v3 ? &kernels_v3 : nullptr;
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (index == 2) return v4 ? &kernels_v4 : nullptr;
  return v4 && __builtin_cpu_supports("avx512vnni") ? &kernels_v4_vnni : nullptr;
#else
  return index == 0 ? &kernels_v2 : nullptr;
#endif
}

const Kernels* best() {
  for (int index = kIsaCount - 1; index >= 0; --index)
    if (const Kernels* found = table(index)) return found;
  return nullptr;
}

std::atomic<const Kernels*> active{best()};

}  // namespace

const Kernels& kernels() { return *active.load(std::memory_order_relaxed); }

const char* isa_name(int index) {
  const Kernels* found = table(index);
  return found ? found->name : nullptr;
}

const char* isa_active() {
  const Kernels* found = active.load(std::memory_order_relaxed);
  return found ? found->name : nullptr;
}

bool isa_select(const char* name) {
  for (int index = 0; index < kIsaCount; ++index) {
    const Kernels* found = table(index);
    if (found && std::strcmp(found->name, name) == 0) {
      active.store(found, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace fastrank
