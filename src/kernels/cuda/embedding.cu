// Rows picked by index: of the bf16 embedding table, widened, and of f32 activations. A block per row.
// An index that is none gives a row of NaN, so that no index reads outside the matrix.

#include "args.cuh"

// out[t,:] = table[tokens[t],:]
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(float *__restrict__ out, const uint16_t *__restrict__ table,
              const uint32_t *__restrict__ tokens, int hidden, uint32_t vocab) {
    const uint32_t token = tokens[blockIdx.x];
    float *row = out + size_t(blockIdx.x) * hidden;
    if (token >= vocab) {
        for (int i = threadIdx.x; i < hidden; i += THREADS) row[i] = quiet_nan();
        return;
    }
    const uint16_t *from = table + size_t(token) * hidden;
    if (hidden % 8 == 0 && aligned16(from) && aligned16(row)) {
        for (int i = threadIdx.x * 8; i < hidden; i += THREADS * 8) {
            const uint4 bits = *reinterpret_cast<const uint4 *>(from + i);
            const float2 a = bf16x2_to_f32(bits.x), b = bf16x2_to_f32(bits.y);
            const float2 c = bf16x2_to_f32(bits.z), d = bf16x2_to_f32(bits.w);
            *reinterpret_cast<float4 *>(row + i) = make_float4(a.x, a.y, b.x, b.y);
            *reinterpret_cast<float4 *>(row + i + 4) = make_float4(c.x, c.y, d.x, d.y);
        }
    } else {
        for (int i = threadIdx.x; i < hidden; i += THREADS) row[i] = bf16_to_f32(from[i]);
    }
}

// out[r,:] = x[rows[r],:] with x: [count, hidden]
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows(float *__restrict__ out, const float *__restrict__ x,
                const uint32_t *__restrict__ rows, int hidden, uint32_t count) {
    const uint32_t from = rows[blockIdx.x];
    float *row = out + size_t(blockIdx.x) * hidden;
    const float nan = quiet_nan();
    const float *source = x + size_t(from < count ? from : 0) * hidden;
    const bool wide = hidden % 4 == 0 && aligned16(x) && aligned16(out);
    for (int i = threadIdx.x * 4; i < hidden; i += THREADS * 4) {
        const float4 v = from < count ? load4(source, i, hidden, wide)
                                      : make_float4(nan, nan, nan, nan);
        store4(row, i, hidden, wide, v);
    }
}
