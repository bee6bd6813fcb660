// What comes before the products of tile.cuh.
#include "products.cuh"

// parts[row] = hi of x[row], then lo, each in the order 0 4 1 5 2 6 3 7 of every eight features. A
// thread per eight features.
extern "C" __global__ void tile_split(uint4 *__restrict__ parts, const float4 *__restrict__ x,
                                      int cols, uint64_t eights) {
    const int width = cols / 8;
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < eights;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const float4 low = x[2 * i], high = x[2 * i + 1];
        const float v[8] = {low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w};
        uint32_t hi[4], lo[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const Bf16Parts a = split_bf16(v[2 * j]), b = split_bf16(v[2 * j + 1]);
            hi[j] = uint32_t(a.hi) | uint32_t(b.hi) << 16;
            lo[j] = uint32_t(a.lo) | uint32_t(b.lo) << 16;
        }
        uint4 *to = parts + i / width * (2 * width) + i % width;
        to[0] = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        to[width] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    }
}
