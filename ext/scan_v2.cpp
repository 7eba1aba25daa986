// The baseline: any CPU this was built for.
#define FASTRANK_ISA v2
#include "scan-inl.h"
