// Root-mean-square normalisation (Zhang and Sennrich 2019), with the addition before it. A block per row; the sum of a row has one order whatever the rows beside it.

#include "args.cuh"

// Thread t owns elements 4t .. 4t + 4, and so on every 4 · THREADS: in all three passes.
template <bool ADD>
static __device__ __forceinline__ void norm_row(float *__restrict__ out, float *x_out,
                                                const float *x, const float *delta,
                                                const float *__restrict__ w, int hidden, float eps,
                                                bool wide) {
    __shared__ float partial[THREADS / 32];
    float sum = 0.0f;
    for (int i = threadIdx.x * 4; i < hidden; i += THREADS * 4) {
        float4 v = load4(x, i, hidden, wide);
        if (ADD) {
            const float4 d = load4(delta, i, hidden, wide);
            v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
            store4(x_out, i, hidden, wide, v);
        }
        sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
    }
    sum = block_sum<THREADS>(sum, partial);
    const float by = rsqrtf(sum / float(hidden) + eps);
    const float *y = ADD ? x_out : x;
    for (int i = threadIdx.x * 4; i < hidden; i += THREADS * 4) {
        const float4 v = load4(y, i, hidden, wide), s = load4(w, i, hidden, wide);
        store4(out, i, hidden, wide,
               make_float4(v.x * by * s.x, v.y * by * s.y, v.z * by * s.z, v.w * by * s.w));
    }
}

// out = x · rsqrt(mean(x²) + eps) · w
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(float *__restrict__ out, const float *__restrict__ x, const float *__restrict__ w,
             int hidden, float eps) {
    const bool wide = hidden % 4 == 0 && aligned16(out) && aligned16(x) && aligned16(w);
    const size_t row = size_t(blockIdx.x) * hidden;
    norm_row<false>(out + row, nullptr, x + row, nullptr, w, hidden, eps, wide);
}

// x += delta, then out = x · rsqrt(mean(x²) + eps) · w
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rms_norm(float *__restrict__ x, const float *__restrict__ delta, float *__restrict__ out,
                 const float *__restrict__ w, int hidden, float eps) {
    const bool wide =
        hidden % 4 == 0 && aligned16(x) && aligned16(delta) && aligned16(out) && aligned16(w);
    const size_t row = size_t(blockIdx.x) * hidden;
    norm_row<true>(out + row, x + row, x + row, delta + row, w, hidden, eps, wide);
}
