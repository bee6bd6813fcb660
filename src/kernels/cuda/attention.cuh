// What decoding and prefill share: a warp attends with query vectors to a tile of positions.
//
// Scores and weighted sums are m16n8k16 products. The 16 rows of the left operand are eight query
// vectors and, under them, what rounding them took away: an f32 is two 16-bit numbers, hi and lo,
// and rows g and g + 8 of a product are added. Eight is how many query heads of this family share a
// kv head, so one read of K and V serves them all.
//
// A lane is 4·g + t, as in the layout of the fragments: it holds two columns of row g of the sums.
// Which positions and dimensions these columns stand for is free, as long as both operands agree.
// The orders chosen let a lane read its share of a key or value as 4 or more neighbours.
#pragma once
#include "pages.cuh"

// Numbers of 16 bits, two in a word.
struct Half2 {
    static __device__ __forceinline__ uint32_t pack(float x, float y) { return f32_to_f16x2(x, y); }
    static __device__ __forceinline__ float2 unpack(uint32_t word) { return f16x2_to_f32(word); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                    uint2 b) {
        mma_f16(d, a, {b.x, b.y});
    }
};
struct Bfloat162 {
    static __device__ __forceinline__ uint32_t pack(float x, float y) {
        return f32_to_bf16x2(x, y);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t word) { return bf16x2_to_f32(word); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                    uint2 b) {
        mma_bf16(d, a, {b.x, b.y});
    }
};

// In what numbers a stored element is multiplied, and into how many it is split. E4M3 numbers are
// f16 numbers and bf16 are themselves; an f32 is two bf16.
template <int FORMAT> struct Stored {
    using Number = Bfloat162;
    static constexpr int PARTS = FORMAT == KV_F32 ? 2 : 1;
};
template <> struct Stored<KV_FP8> {
    using Number = Half2;
    static constexpr int PARTS = 1;
};

// hi holds both numbers rounded, lo what that took away, rounded.
template <class Number>
__device__ __forceinline__ void split(float x, float y, uint32_t &hi, uint32_t &lo) {
    hi = Number::pack(x, y);
    const float2 rounded = Number::unpack(hi);
    lo = Number::pack(x - rounded.x, y - rounded.y);
}

__device__ __forceinline__ uint32_t fp8x2_to_half2(uint32_t codes) {
    const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes), __NV_E4M3);
    uint32_t word;
    memcpy(&word, &raw, 4);
    return word;
}

// Element `e` of word group `a` and of `b`, one after the other in one word; part 1 is what
// rounding took away. A group holds neighbours: 4 fp8, 4 bf16 or 4 f32.
template <int FORMAT>
__device__ __forceinline__ uint32_t pair(const uint32_t *a, const uint32_t *b, int e, int part) {
    if constexpr (FORMAT == KV_FP8) {
        return fp8x2_to_half2(__byte_perm(a[0], b[0], e | (4 + e) << 4) & 0xffff);
    } else if constexpr (FORMAT == KV_BF16) {
        return __byte_perm(a[e / 2], b[e / 2], e % 2 ? 0x7632 : 0x5410);
    } else {
        uint32_t parts[2];
        split<Bfloat162>(__uint_as_float(a[e]), __uint_as_float(b[e]), parts[0], parts[1]);
        return parts[part];
    }
}

// The four elements of a word group as two words of two.
template <int FORMAT> __device__ __forceinline__ uint2 quad(const uint32_t *a, int part) {
    if constexpr (FORMAT == KV_FP8) {
        return make_uint2(fp8x2_to_half2(a[0] & 0xffff), fp8x2_to_half2(a[0] >> 16));
    } else if constexpr (FORMAT == KV_BF16) {
        return make_uint2(a[0], a[1]);
    } else {
        uint32_t parts[2][2];
        for (int i = 0; i < 2; i++)
            split<Bfloat162>(__uint_as_float(a[2 * i]), __uint_as_float(a[2 * i + 1]), parts[0][i],
                             parts[1][i]);
        return make_uint2(parts[part][0], parts[part][1]);
    }
}

// Of a tile: the position that column `n` of the products of eight positions number `j` stands for.
__device__ __forceinline__ int tile_position(int j, int n) {
    return 16 * (j / 2) + 4 * (n / 2) + 2 * (j % 2) + n % 2;
}

// The first of the four neighbouring dimensions that lane t contributes to step `step` of q·k, when
// a lane's keys come in runs of PER.
template <int PER> __device__ __forceinline__ int key_dim(int step, int t) {
    return 4 * step / PER * 4 * PER + t * PER + 4 * step % PER;
}

// The dimension that column `n` of products `nt` of the weighted sums stands for, when a lane's
// values come in runs of PER.
template <int PER> __device__ __forceinline__ int value_dim(int nt, int n) {
    return nt / PER * 8 * PER + n * PER + nt % PER;
}

// Weights are at most 1; as f16 their small ones keep more digits 2^12 times as large.
constexpr float WEIGHT_UNIT = 4096.0f;
constexpr float LOG2_E = 1.44269504088896341f;

// Eight query vectors in the registers of a warp, with the softmax over what they have seen so far.
// Scores are in units of ln 2, so that weights are powers of two.
template <int DIM> struct Queries {
    uint32_t q[DIM / 16][4];
    float factor;         // from a product to a score
    unsigned first, end;  // positions that vector g sees
    float max, sum;       // of vector g; the sum of this lane's positions alone
    float acc[DIM / 8][4];

    // Vector g is `q`, of `dim` dimensions; null stands for zeros that see nothing.
    template <class Number, int PER>
    __device__ __forceinline__ void start(const float *vector, int dim, float scale,
                                          unsigned first_seen, unsigned end_seen) {
        const int t = threadIdx.x % 4;
        float x[DIM / 4], largest = 0;
#pragma unroll
        for (int i = 0; i < DIM / 4; i++) {
            const int d = key_dim<PER>(i / 4, t) + i % 4;
            x[i] = vector && d < dim ? vector[d] : 0;
            largest = fmaxf(largest, fabsf(x[i]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        // By a power of two into the range of f16, where it is most exact.
        const unsigned exponent = ::min(::max(__float_as_uint(largest) >> 23, 27u), 227u);
        const float up = __uint_as_float((266 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < DIM / 8; i++)
            split<Number>(x[2 * i] * up, x[2 * i + 1] * up, q[i / 2][i % 2 * 2],
                          q[i / 2][i % 2 * 2 + 1]);
        factor = __uint_as_float((exponent - 12) << 23) * (scale * LOG2_E);
        first = vector ? first_seen : 0, end = vector ? end_seen : 0;
        max = -INFINITY, sum = 0;
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) acc[i / 4][i % 4] = 0;
    }

    // Of the lane's columns 2t and 2t + 1 of products `nt`: the sum of weights times values.
    __device__ __forceinline__ float weighted(int nt, int i) const {
        return acc[nt][i] + acc[nt][2 + i];
    }
};

// Adds 8 · TILES positions from `base` on to N times eight vectors. `keys(j, step, part)` and
// `values(nt, step, part)` give a lane's two words of the right operand; what is not visible to any
// vector must be finite there. When the page of the tile is `missing`, vectors that see it become
// NaN.
template <int FORMAT, int DIM, int TILES, int N, class Keys, class Values>
__device__ __forceinline__ void attend(Queries<DIM> (&x)[N], unsigned base, bool missing,
                                       const Keys &keys, const Values &values) {
    using Number = typename Stored<FORMAT>::Number;
    constexpr int PARTS = Stored<FORMAT>::PARTS;
    const int t = threadIdx.x % 4;
    float weights[N][TILES][2];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        float scores[N][4] = {};
#pragma unroll
        for (int step = 0; step < DIM / 16; step++)
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const uint2 k = keys(j, step, part);
#pragma unroll
                for (int n = 0; n < N; n++) Number::multiply(scores[n], x[n].q[step], k);
            }
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned position = base + tile_position(j, 2 * t + i);
                const bool visible = position >= x[n].first && position < x[n].end;
                const float score = missing ? NAN : (scores[n][i] + scores[n][2 + i]) * x[n].factor;
                weights[n][j][i] = visible ? score : -INFINITY;
            }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        float max = x[n].max;
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) max = fmaxf(max, weights[n][i / 2][i % 2]);
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        // Nothing seen yet: every weight is 0, not e^(-inf + inf).
        const float shift = max == -INFINITY ? 0 : max;
        const float rescale = exp2f(x[n].max - shift);
        x[n].max = max;
        x[n].sum *= rescale;
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) x[n].acc[i / 4][i % 4] *= rescale;
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            float &weight = weights[n][i / 2][i % 2];
            weight = exp2f(weight - shift);
            x[n].sum += weight;
        }
    }
#pragma unroll
    for (int step = 0; step < TILES / 2; step++) {
        uint32_t p[N][4];
#pragma unroll
        for (int i = 0; i < 2 * N; i++) {
            const float (&w)[2] = weights[i / 2][2 * step + i % 2];
            split<Number>(w[0] * WEIGHT_UNIT, w[1] * WEIGHT_UNIT, p[i / 2][i % 2 * 2],
                          p[i / 2][i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int nt = 0; nt < DIM / 8; nt++)
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const uint2 v = values(nt, step, part);
#pragma unroll
                for (int n = 0; n < N; n++) Number::multiply(x[n].acc[nt], p[n], v);
            }
    }
}

// Where the rows of a call and their pages are.
struct AttentionRows {
    const uint32_t *positions, *sequences, *page_tables;
    unsigned sequence_count, table_stride;
    unsigned window;  // UINT32_MAX for none
    unsigned page_count;

    // Of a row; one that its page table cannot hold becomes the first of these, whose page is
    // missing.
    __device__ __forceinline__ unsigned position(size_t row) const {
        return ::min(positions[row], table_stride * PAGE_TOKENS);
    }
    // The first position that a row at `position` sees.
    __device__ __forceinline__ unsigned first_seen(unsigned position) const {
        return position >= window ? position + 1 - window : 0;
    }
    // The page of `position`, or one that is not in the pool.
    __device__ __forceinline__ unsigned page(unsigned sequence, unsigned position) const {
        const unsigned i = position / PAGE_TOKENS;
        if (sequence >= sequence_count || i >= table_stride) return UINT32_MAX;
        return page_tables[size_t(sequence) * table_stride + i];
    }
};
