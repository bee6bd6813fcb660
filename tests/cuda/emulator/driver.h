// The lock that every call of the driver and of the libraries above it holds.
#pragma once
#include <mutex>

namespace emulator {
extern std::recursive_mutex device;
using Lock = std::lock_guard<std::recursive_mutex>;
// Whether the device is lost, see build.sh. Asked under the lock.
bool lost();
}  // namespace emulator
