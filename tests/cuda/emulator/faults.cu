// Kernels with planted faults, and without: what the emulator must notice.

#include "args.cuh"

// Sums 256 values through shared memory; `barriers` says whether it waits for them.
extern "C" __global__ void block_reduce(const float *x, float *out, int barriers) {
    __shared__ float values[256];
    const int t = threadIdx.x;
    values[t] = x[t];
    if (barriers) __syncthreads();
    float sum = 0;
    for (int i = 0; i < 256; i++) sum += values[i];
    out[t] = sum;
}

extern "C" __global__ void reads_shared_memory_of_the_block_before(float *out) {
    __shared__ float value;
    if (blockIdx.x == 0 && threadIdx.x == 0) value = 1;
    __syncthreads();
    out[blockIdx.x] = value;
}

extern "C" __global__ void access(float *x, int at, int write) {
    if (write)
        x[at] = 1;
    else
        x[0] = x[at];
}

extern "C" __global__ void loads_two(const float *x, float *out, int at) {
    const float2 v = *reinterpret_cast<const float2 *>(x + at);
    out[0] = v.x + v.y;
}

extern "C" __global__ void indexes_shared_memory(float *out, int at) {
    __shared__ float values[32];
    values[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = values[at];
}

extern "C" __global__ void shuffles(unsigned *out) {
    const unsigned lane = threadIdx.x;
    out[lane] = __shfl_sync(ALL_LANES, lane, 5);
    out[32 + lane] = __shfl_down_sync(ALL_LANES, lane, 3);
    out[64 + lane] = __shfl_up_sync(ALL_LANES, lane, 3);
    out[96 + lane] = __shfl_xor_sync(ALL_LANES, lane, 1, 8);
    out[128 + lane] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
    out[160 + lane] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    // All lanes, then half of them: the upper half must not see what the lower half shuffles next.
    unsigned v = __shfl_xor_sync(ALL_LANES, lane, 16);
    if (lane < 16) v = __shfl_xor_sync(0xffffu, v, 1);
    out[192 + lane] = v;
    out[224 + lane] = unsigned(__syncthreads_count(lane < 7));
}

extern "C" __global__ void shuffle_from_an_absent_lane(float *out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

extern "C" __global__ void a_lane_that_has_left(float *out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_down_sync(ALL_LANES, 1.0f, 8);
}

extern "C" __global__ void different_barriers() {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void half_a_warp_waits() {
    if (threadIdx.x < 16) __syncwarp();
    __syncthreads();
}

// d = a · b with a [16,16], b [16,8] row-major in bf16, each lane loading its own fragments. Warps but the
// second multiply something else at the same time.
extern "C" __global__ void product(float *d, const uint16_t *a, const uint16_t *b) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    const auto pair = [](uint16_t low, uint16_t high) { return uint32_t(low) | uint32_t(high) << 16; };
    const auto of_a = [&](int row, int column) {
        return pair(a[row * 16 + column], a[row * 16 + column + 1]);
    };
    const auto of_b = [&](int row, int column) {
        return pair(b[row * 8 + column], b[(row + 1) * 8 + column]);
    };
    const uint32_t fa[4] = {of_a(g, c), of_a(g + 8, c), of_a(g, c + 8), of_a(g + 8, c + 8)};
    const uint32_t fb[2] = {of_b(c, g), of_b(c + 8, g)};
    float sums[4] = {0, 0, 0, 0};
    if (threadIdx.x / 32 != 1) {
        const uint32_t zeros[4] = {0, 0, 0, 0};
        mma_bf16(sums, zeros, fb);
        return;
    }
    mma_bf16(sums, fa, fb);
    mma_bf16(sums, fa, fb);
    d[g * 8 + c] = sums[0];
    d[g * 8 + c + 1] = sums[1];
    d[(g + 8) * 8 + c] = sums[2];
    d[(g + 8) * 8 + c + 1] = sums[3];
}

extern "C" __global__ void formats(float *bf16, float *e4m3, float *half, float *e8m0, float *fp4,
                                   unsigned *changed) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    bf16[i] = bf16_to_f32(uint16_t(i));
    half[i] = __half2float(__half(__half_raw{uint16_t(i)}));
    // What is read from a code is written as that code again.
    unsigned off = 0;
    if (bf16[i] == bf16[i]) off |= f32_to_bf16(bf16[i]) != i;
    if (half[i] == half[i]) off |= unsigned(__half_as_ushort(__float2half_rn(half[i])) != i) << 1;
    if (i < 256) {
        e4m3[i] = e4m3x2_to_f32(uint16_t(i | 0x3000)).x;
        e8m0[i] = e8m0_to_f32(i);
        // NaN comes out of conversions and arithmetic without its sign.
        off |= unsigned(f32_to_e4m3(-NAN) != 0x7f || f32_to_bf16(-NAN) != 0x7fff) << 4;
        off |= unsigned(__float_as_uint(__fdiv_rn(-NAN, 2.0f)) != 0x7fffffffu) << 5;
        off |= unsigned(f32_to_e4m3(e4m3[i]) != i && e4m3[i] == e4m3[i]) << 2;
        off |= unsigned(e4m3x2_to_f32(uint16_t(0x30 | i << 8)).y != e4m3[i] && e4m3[i] == e4m3[i]) << 3;
        const float2 pair = __half22float2(__half2(__nv_cvt_fp4x2_to_halfraw2(uint8_t(i), __NV_E2M1)));
        fp4[2 * i] = pair.x;
        fp4[2 * i + 1] = pair.y;
    }
    changed[i] = off;
}
