// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): a pure function of (counter, key), so a draw is named by where it stands and not by
// what was drawn before it.
#pragma once

#include <cstdint>

namespace fastrank {

struct Block {
  uint32_t word[4];
};

static inline Block philox4x32_10(Block counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = Block{{uint32_t(product1 >> 32) ^ counter.word[1] ^ key0, uint32_t(product1),
                     uint32_t(product0 >> 32) ^ counter.word[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace fastrank
