#!/usr/bin/env bash
# Builds the emulator and prints the environment in which cargo uses it:
#
#     eval "$(tests/cuda/emulator/build.sh)"
#     cargo test --features cuda --test cuda
#
# `build.sh --test` runs the emulator's own test instead.
#
# Everything goes to target/cuda-emulator. Only what changed is compiled: a new .cu in
# src/kernels/cuda is found by itself, and so is every `__global__ void name(` in it.
#
# EMULATOR_ORDER=ascending|descending is the order of threads and blocks, EMULATOR_MEMORY_MIB the size
# of the device, EMULATOR_SHARED_KIB (227) its shared memory per block and EMULATOR_CAPABILITY (9.0) what
# it can. With EMULATOR_NO_CAPTURE streams cannot be captured. Once there is a file of the name EMULATOR_LOST
# the device is lost. EMULATOR_CXXFLAGS adds flags.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
home=$root/target/cuda-emulator
mkdir -p "$home/bin" "$home/lib" "$home/objects"
home=$(cd "$home" && pwd)
ln -sf "$here/nvcc" "$home/bin/nvcc"
flags=(-std=c++17 -O2 -g1 -fPIC -fno-gnu-unique -ffp-contract=off -Wall -Wextra -Wno-unused-function
    -Wno-unknown-pragmas -Wno-unused-variable -Wno-unused-but-set-variable -I"$here"
    -I"$root/src/kernels/cuda")
# What a device traps on or leaves undefined ends the process: loads that are not aligned, indices outside
# an array of shared memory, shifts and sums that overflow.
read -ra more <<< "-fsanitize=undefined -fno-sanitize=null,vptr -fno-sanitize-recover=undefined ${EMULATOR_CXXFLAGS:-}"
flags+=("${more[@]}")
compiler=${CXX:-g++}

# object NAME SOURCE FLAGS...: compiles unless an object of the same inputs and flags is there.
object() {
    local name=$1 source=$2 key object
    shift 2
    key=$({ "$compiler" --version; echo "$source ${flags[*]} $*"; cat "$source" "$here"/*.h; \
        [ $# -eq 0 ] || cat "$root"/src/kernels/cuda/*.cuh "$cu" "$list"; } \
        | sha256sum | cut -c1-16)
    object=$home/objects/$name-$key.o
    objects+=("$object")
    [ -f "$object" ] && return
    rm -f "$home/objects/$name"-*.o
    echo "emulator: $name" >&2
    "$compiler" "${flags[@]}" "$@" -c "$source" -o "$object.part" >&2
    mv "$object.part" "$object"
}

# kernels SOURCE: compiles a .cu and what registers its kernels.
kernels() {
    local cu=$1 name list
    name=$(basename "$cu" .cu)
    list=$home/objects/$name.list
    "$compiler" "${flags[@]}" -DEMULATOR_LIST -DEMULATOR_SHARED='""' -include "$here/cuda_on_cpu.h" \
        -x c++ -E -P "$cu" | tr '\n' ' ' | grep -oE '__global__ void +[A-Za-z0-9_]+' \
        | sed 's/.* \(.*\)/KERNEL(\1)/' > "$list"
    object "$name" "$here/kernels.cpp" -DSOURCE="\"$name.cu\"" -DLIST="\"$list\"" \
        -DSECTION="shared_$name" -DEMULATOR_SHARED="\"shared_$name\""
}

objects=()
for part in fibers async tensor wgmma memory streams driver blas; do object "$part" "$here/$part.cpp"; done
if [ "${1:-}" = --test ]; then
    for source in "$here"/faults*.cu; do kernels "$source"; done
    for source in "$here"/selftest*.cpp; do object "$(basename "$source" .cpp)" "$source"; done
    "$compiler" -pthread "${more[@]}" -o "$home/selftest" "${objects[@]}"
    exec "$home/selftest"
fi
for source in "$root"/src/kernels/cuda/*.cu; do kernels "$source"; done
stamp=$(echo "${objects[*]}" | sha256sum | cut -c1-16)
if [ "$(cat "$home/lib/stamp" 2> /dev/null)" != "$stamp" ]; then
    "$compiler" -shared -pthread "${more[@]}" -Wl,-soname,libcuda.so.1 -Wl,-z,defs -o "$home/lib/libcuda.so.1" \
        "${objects[@]}"
    ln -sf libcuda.so.1 "$home/lib/libcuda.so"
    # The other libraries are asked for by name; what they offer is in the first.
    for library in cublas cublasLt curand nvrtc cudart; do
        echo | "$compiler" -shared -fPIC -x c++ - -o "$home/lib/lib$library.so"
    done
    echo "$stamp" > "$home/lib/stamp"
fi
echo "export CUDA_HOME='$home' NVCC='$home/bin/nvcc' CUDA_COMPUTE_CAP=90" \
    "PATH='$home/bin':\"\$PATH\" LD_LIBRARY_PATH='$home/lib'"
