// What candle asks of cuBLAS and cuRAND: handles, and products of F32 or BF16 with f32 sums.
#include "fibers.h"
#include "driver.h"
#include "memory.h"
#include "streams.h"
#include <cmath>
#include <cstring>

#define API extern "C" __attribute__((visibility("default")))

// A handle is the stream it works on.
struct Handle { void *stream = nullptr; };
enum { SUCCESS = 0, NOT_SUPPORTED = 15, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };
enum { R_32F = 0, R_16BF = 14 };

static size_t width(int type) { return type == R_32F ? 4 : 2; }

static float load(const void *matrix, int type, size_t at) {
    if (type == R_32F) return ((const float *)matrix)[at];
    const uint32_t bits = uint32_t(((const uint16_t *)matrix)[at]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void store(void *matrix, int type, size_t at, float value) {
    if (type == R_32F) {
        ((float *)matrix)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7fff0000 : bits + 0x7fff + (bits >> 16 & 1);
    ((uint16_t *)matrix)[at] = uint16_t(bits >> 16);
}

// Elements from the first to behind the last of a column-major matrix.
static size_t extent(int rows, int columns, int leading) {
    return rows && columns ? size_t(columns - 1) * size_t(leading) + size_t(rows) : 0;
}

API int cublasCreate_v2(void **h) { *h = new Handle; return SUCCESS; }
// Giving a handle's memory back waits for the whole device; what became of that is not told.
API int cuCtxSynchronize();
API int cublasDestroy_v2(void *h) { delete (Handle *)h; cuCtxSynchronize(); return SUCCESS; }
API int cublasSetStream_v2(void *h, void *stream) { ((Handle *)h)->stream = stream; return SUCCESS; }
API int cublasSetWorkspace_v2(void *, void *, size_t) { return SUCCESS; }
API int cublasSetMathMode(void *, int) { return SUCCESS; }
API int cublasSetPointerMode_v2(void *, int) { return SUCCESS; }

// C[m,n] = alpha · op(A)[m,k] · op(B)[k,n] + beta · C, column-major. A C that beta makes irrelevant is
// not read: it may hold NaN.
API int cublasGemmEx(void *h, int transa, int transb, int m, int n, int k, const float *alpha,
                     const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                     const float *beta, void *c, int c_type, int ldc, int compute, int) {
    const auto known = [](int type) { return type == R_32F || type == R_16BF; };
    // CUBLAS_COMPUTE_32F and its variants for F32 inputs
    if (!known(a_type) || a_type != b_type || !known(c_type) || compute < 68 || compute > 77) return NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || lda < (transa ? k : m) || ldb < (transb ? n : k) || ldc < m) return INVALID_VALUE;
    const size_t size_a = extent(transa ? k : m, transa ? m : k, lda) * width(a_type);
    const size_t size_b = extent(transb ? n : k, transb ? k : n, ldb) * width(b_type);
    const size_t size_c = extent(m, n, ldc) * width(c_type);
    emulator::Lock lock(emulator::device);
    if (emulator::lost()) return EXECUTION_FAILED;
    if (!emulator::allocated(a, size_a) || !emulator::allocated(b, size_b) || !emulator::allocated(c, size_c))
        emulator::fail("a product reads or writes outside device memory");
    emulator::put(((Handle *)h)->stream, [=, alpha = *alpha, beta = *beta] {
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                float sum = 0;
                for (int l = 0; l < k; l++) {
                    const size_t at_a = transa ? l + size_t(i) * lda : i + size_t(l) * lda;
                    const size_t at_b = transb ? j + size_t(l) * ldb : l + size_t(j) * ldb;
                    sum = fmaf(load(a, a_type, at_a), load(b, b_type, at_b), sum);
                }
                const size_t at = i + size_t(j) * ldc;
                const float before = beta == 0 ? 0 : beta * load(c, c_type, at);
                store(c, c_type, at, alpha * sum + before);
            }
    });
    return SUCCESS;
}
API int cublasGemmStridedBatchedEx(void *h, int transa, int transb, int m, int n, int k,
                                   const float *alpha, const void *a, int a_type, int lda,
                                   long long stride_a, const void *b, int b_type, int ldb,
                                   long long stride_b, const float *beta, void *c, int c_type,
                                   int ldc, long long stride_c, int batch, int compute, int algorithm) {
    for (int i = 0; i < batch; i++) {
        const int status = cublasGemmEx(
            h, transa, transb, m, n, k, alpha, (const char *)a + i * stride_a * (long long)width(a_type), a_type,
            lda, (const char *)b + i * stride_b * (long long)width(b_type), b_type, ldb, beta,
            (char *)c + i * stride_c * (long long)width(c_type), c_type, ldc, compute, algorithm);
        if (status != SUCCESS) return status;
    }
    return SUCCESS;
}
API int cublasDgemmStridedBatched(...) { return NOT_SUPPORTED; }

API int curandCreateGenerator(void **generator, int) { static int only; *generator = &only; return SUCCESS; }
API int curandDestroyGenerator(void *) { return SUCCESS; }
API int curandSetStream(void *, void *) { return SUCCESS; }
API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return SUCCESS; }
// Numbers of the emulator's device are never drawn: 104 is CURAND_STATUS_TYPE_ERROR.
API int curandGenerateNormal(...) { return 104; }
API int curandGenerateNormalDouble(...) { return 104; }
API int curandGenerateUniform(...) { return 104; }
API int curandGenerateUniformDouble(...) { return 104; }
