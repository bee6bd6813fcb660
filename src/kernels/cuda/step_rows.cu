// What a step does before its first layer: page tables take the changes that came with its rows,
// and every row's slot in every layer is looked up in them.
#include "pages.cuh"

// changes: their number, then for each an index into `tables` [layers, sequences, stride] and the
// page that belongs there; at most `most`. slots: [layers, rows]; a row whose sequence or position
// has no table entry gets one outside every pool.
//
// A block per layer makes the changes of its layer, so that no block waits for another.
extern "C" __global__ void __launch_bounds__(THREADS)
    step_rows(uint64_t *__restrict__ slots, uint32_t *tables, const uint32_t *__restrict__ changes,
              uint32_t most, const uint32_t *__restrict__ positions,
              const uint32_t *__restrict__ sequences, uint32_t rows, uint32_t sequence_count,
              uint32_t stride) {
    const uint32_t layer = blockIdx.x, entries = sequence_count * stride, first = layer * entries;
    const uint32_t count = changes[0] < most ? changes[0] : most;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const uint32_t index = changes[1 + 2 * i];
        if (index >= first && index - first < entries) tables[index] = changes[2 + 2 * i];
    }
    __syncthreads();
    for (uint32_t t = threadIdx.x; t < rows; t += THREADS) {
        const uint32_t position = positions[t], sequence = sequences[t], i = position / PAGE_TOKENS;
        uint64_t slot = ~uint64_t(0);
        if (sequence < sequence_count && i < stride)
            slot = uint64_t(tables[first + sequence * stride + i]) * PAGE_TOKENS
                   + position % PAGE_TOKENS;
        slots[uint64_t(layer) * rows + t] = slot;
    }
}
