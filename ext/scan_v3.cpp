// AVX2 and FMA.
#if defined(__x86_64__)
#define FASTRANK_ISA v3
#include "scan-inl.h"
#endif
