// Products on tensor cores: what a warp's lanes hold is brought together, and multiplied once for all.
#pragma once
#include <cstdint>

namespace emulator {

enum class Format : uint8_t { bf16, f16 };

// mma.sync.m16n8k16 with the fragments of args.cuh. Of each sum two products are added at a time.
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format format);

}  // namespace emulator
