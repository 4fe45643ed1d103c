// libcublas, as far as drydock's worker uses it: products of f32 and bf16 with sums in f32, operand by operand held
// against what is allocated. Column-major, as cuBLAS is.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "language.h"

extern "C" bool emulated_gpu_holds(std::uintptr_t address, std::size_t bytes);
extern "C" void emulated_gpu_complains(const char* what);
extern "C" int emulated_gpu_current();

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, BF16 = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };

__attribute__((format(printf, 1, 2))) Status mistake(const char* format, ...) {
    char text[256];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    emulated_gpu_complains(text);
    return INVALID_VALUE;
}

std::size_t bytes_of(int type) { return type == BF16 ? 2 : 4; }

float value(const void* from, int type, std::size_t at) {
    return type == BF16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at]) : static_cast<const float*>(from)[at];
}

struct Operand {
    const char* name;
    const void* values;
    int type, step;
    long long batch_step;

    // `rows` x `columns` as they lie, column after column.
    Status check(int rows, int columns, int count) const {
        if (step < (rows > 1 ? rows : 1)) return mistake("cuBLAS: %s has columns of %d values, %d apart", name, rows, step);
        const std::size_t one = std::size_t(columns - 1) * std::size_t(step) + std::size_t(rows);
        for (int i : {0, count - 1}) {
            const auto first = std::uintptr_t(values) + std::uintptr_t(i * batch_step) * bytes_of(type);
            if (!emulated_gpu_holds(first, one * bytes_of(type)))
                return mistake("cuBLAS: %s, %d x %d, columns %d apart, product %d of %d, is not in one allocation", name, rows,
                               columns, step, i, count);
        }
        return SUCCESS;
    }
};

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC Status cublasCreate_v2(void** handle) {
    // A handle is of the GPU that it was made on.
    *handle = new int(emulated_gpu_current());
    return SUCCESS;
}
PUBLIC Status cublasDestroy_v2(void* handle) {
    delete static_cast<int*>(handle);
    return SUCCESS;
}
PUBLIC Status cublasGetVersion_v2(void*, int* version) {
    *version = 130000;
    return SUCCESS;
}
PUBLIC Status cublasSetStream_v2(void*, void*) { return SUCCESS; }
PUBLIC Status cublasSetMathMode(void*, int) { return SUCCESS; }
PUBLIC Status cublasSetWorkspace_v2(void*, void* workspace, std::size_t bytes) {
    if (std::uintptr_t(workspace) % 16) return mistake("cuBLAS: a misaligned workspace");
    return emulated_gpu_holds(std::uintptr_t(workspace), bytes) ? SUCCESS : mistake("cuBLAS: a workspace not allocated");
}

PUBLIC Status cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                                         const void* a, int type_a, int step_a, long long batch_a, const void* b, int type_b,
                                         int step_b, long long batch_b, const void* beta, void* c, int type_c, int step_c,
                                         long long batch_c, int count, int compute, int) {
    if (*static_cast<int*>(handle) != emulated_gpu_current()) return mistake("cuBLAS: the handle is of another GPU");
    if (m < 0 || n < 0 || k < 0 || count < 0) return mistake("cuBLAS: a negative size");
    if (compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32) return NOT_SUPPORTED;
    if (type_a != type_b || (type_a == F32 && type_c != F32)) return NOT_SUPPORTED;
    if (m == 0 || n == 0 || count == 0) return SUCCESS;
    if (transpose_a > 1 || transpose_b > 1) return NOT_SUPPORTED;
    if (k > 0) {
        const Operand left = {"the first operand", a, type_a, step_a, batch_a};
        const Operand right = {"the second operand", b, type_b, step_b, batch_b};
        if (const Status wrong = left.check(transpose_a ? k : m, transpose_a ? m : k, count)) return wrong;
        if (const Status wrong = right.check(transpose_b ? n : k, transpose_b ? k : n, count)) return wrong;
    }
    const Operand target = {"the result", c, type_c, step_c, batch_c};
    if (const Status wrong = target.check(m, n, count)) return wrong;
    const long long size = (long long)(n - 1) * step_c + m;
    // Columns that lie between others' are no overlap; one product's values that reach into another's may be.
    if (count > 1 && batch_c < m && batch_c < size) return mistake("cuBLAS: the results of a batch overlap");
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    std::vector<float> rows(std::size_t(m) * std::size_t(k)), column(static_cast<std::size_t>(k));
    for (int p = 0; p < count; p++) {
        const auto start = [p](long long batch) { return std::size_t(p * batch); };
        // Turned and widened once, so that the inner loop runs along memory.
        for (int i = 0; i < m; i++)
            for (int l = 0; l < k; l++)
                rows[std::size_t(i) * std::size_t(k) + std::size_t(l)] =
                    value(a, type_a, start(batch_a) + (transpose_a ? std::size_t(i) * step_a + l : std::size_t(l) * step_a + i));
        for (int j = 0; j < n; j++) {
            for (int l = 0; l < k; l++)
                column[std::size_t(l)] =
                    value(b, type_b, start(batch_b) + (transpose_b ? std::size_t(l) * step_b + j : std::size_t(j) * step_b + l));
            for (int i = 0; i < m; i++) {
                const float* row = &rows[std::size_t(i) * std::size_t(k)];
                float sum = 0.0f;
                for (int l = 0; l < k; l++) sum += row[l] * column[std::size_t(l)];
                const std::size_t at = start(batch_c) + std::size_t(j) * step_c + i;
                // Where nothing is kept, what lay there may be anything.
                const float result = scale * sum + (keep == 0.0f ? 0.0f : keep * value(c, type_c, at));
                if (type_c == BF16) static_cast<__nv_bfloat16*>(c)[at] = __float2bfloat16_rn(result);
                else static_cast<float*>(c)[at] = result;
            }
        }
    }
    return SUCCESS;
}

PUBLIC Status cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                           int type_a, int step_a, const void* b, int type_b, int step_b, const void* beta, void* c, int type_c,
                           int step_c, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, type_a, step_a, 0, b, type_b, step_b,
                                      0, beta, c, type_c, step_c, 0, 1, compute, algorithm);
}
