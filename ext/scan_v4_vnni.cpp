// AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#define FASTRANK_ISA v4_vnni
#include "scan-inl.h"
#endif
