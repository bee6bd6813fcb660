// Device memory: host memory that nobody owns by accident.
//
// Every allocation ends at a page that cannot be touched and begins behind another, is filled with NaN
// when it is made, and has what is left of its pages filled with a pattern that is checked when it is
// freed. Freed memory is gone. A kernel that reads or writes out of bounds by 16 bytes or more behind,
// or by a page before, ends the process with its name; a shorter write is found when memory is freed.
#pragma once
#include <cstddef>

namespace emulator {

// nullptr when the emulated device has no more memory.
void *allocate(size_t bytes);
// False for a pointer that is no allocation.
bool release(void *pointer);
// Makes an allocation memory that is none, and fresh memory again. It stays where it is.
void forbid(void *pointer);
void permit(void *pointer);
// Whether `bytes` from `pointer` lie within one allocation.
bool allocated(const void *pointer, size_t bytes);
void memory_info(size_t *free, size_t *total);
// From now on an access to memory that is none is reported with the kernel that made it.
void report_faults();

}  // namespace emulator
