#!/usr/bin/env bash
# This crate beside llama.cpp, on the same random weights, cores and precision of dense weights, in turn.
#
# usage: benches/compare_llama_cpp.sh [SHAPE [LAYERS [DENSE [ROUNDS [DEPTHS]]]]]
#   SHAPE   gpt-oss-20b (default), gpt-oss-120b
#   LAYERS  how many of its first layers, 4 by default
#   DENSE   bf16 (default) or q8, which is Q8_0 for llama.cpp
#   ROUNDS  of both engines, 3 by default
#   DEPTHS  tokens in the cache before each test, "0 4096" by default
#
# The first run builds llama.cpp from the sources in the Python package llama-cpp-python (about eight minutes of a core),
# and every new shape is written once for both. All of it goes to target/compare, or $COMPARE_DIR. Both use what the
# machine has; with MAX_CPU_ISA=avx2 or avx512 in the environment both use that, llama.cpp in a build of its own.
# THREADS is taken from the environment too. Needs Python 3 with venv, and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
shape=${1:-gpt-oss-20b} layers=${2:-4} dense=${3:-bf16} rounds=${4:-3} depths=${5:-0 4096}
threads=${THREADS:-$(nproc)}
dir=$(realpath -m "${COMPARE_DIR:-target/compare}")
avx2=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
case ${MAX_CPU_ISA:-} in
    "") build=build isa=(-DGGML_NATIVE=ON) ;;
    avx2) build=build-avx2 isa=("${avx2[@]}") ;;
    avx512) build=build-avx512 isa=("${avx2[@]}" -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON) ;;
    *) echo "MAX_CPU_ISA is $MAX_CPU_ISA, expected avx2 or avx512: llama.cpp has no build to compare with" >&2; exit 1 ;;
esac
peer=$dir/$build/bin/llama-bench
mkdir -p "$dir"

if [ ! -x "$peer" ]; then
    echo "building llama.cpp in $dir/$build" >&2
    (
        cd "$dir"
        [ -d venv ] || python3 -m venv venv
        export PATH=$dir/venv/bin:$PATH
        pip install -q scikit-build-core cmake ninja numpy gguf
        [ -e llama_cpp_python-0.3.36.tar.gz ] || pip download -q --no-deps --no-build-isolation --no-binary :all: llama-cpp-python==0.3.36
        tar xzf llama_cpp_python-0.3.36.tar.gz
        # gcc 12 drops the stores of the AMX tile configuration (SIGILL at the first Q8_0 product).
        sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' \
            llama_cpp_python-0.3.36/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
        cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
            "${isa[@]}" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
            -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
        cmake --build "$build" --target llama-bench
    ) > "$dir/$build.log" 2>&1 || { tail "$dir/$build.log" >&2; exit 1; }
fi

cargo build --release --example bench
model=$dir/$shape-$layers
quant=bf16
[ "$dense" = q8 ] && quant=q8_0
if [ ! -e "$model/config.json" ]; then
    target/release/examples/bench --synthetic "$shape" --layers "$layers" --save "$model"
fi
if [ ! -e "$model-$quant.gguf" ]; then
    "$dir/venv/bin/python" benches/gguf_twin.py "$model" "$model-$quant.gguf.part" "$quant"
    mv "$model-$quant.gguf.part" "$model-$quant.gguf"
fi

results=$(mktemp -d)
trap 'rm -r "$results"' EXIT
for round in $(seq "$rounds"); do
    for depth in $depths; do
        echo "round $round, depth $depth" >&2
        "$peer" -m "$model-$quant.gguf" -t "$threads" -p 512 -n 64 -d "$depth" -r 1 -o json \
            > "$results/llama-$depth-$round.json" 2> "$results/log" || { cat "$results/log" >&2; exit 1; }
        target/release/examples/bench --model "$model" --dense-dtype "$dense" -t "$threads" -p 512 -n 64 -d "$depth" -r 1 \
            -o json > "$results/ours-$depth-$round.json" 2> "$results/log" || { cat "$results/log" >&2; exit 1; }
    done
done

python3 - "$results" "$shape, $layers layers, dense $dense, $threads threads" "$depths" <<'PY'
import glob, json, statistics, sys

results, title, depths = sys.argv[1:]
print(title)
print("| test | llama.cpp tokens/s | this crate tokens/s | ratio |\n|---|---|---|---|")
for depth in depths.split():
    for test in ("pp", "tg"):
        theirs, ours = [], []
        for path in glob.glob(f"{results}/llama-{depth}-*.json"):
            tests = json.load(open(path))
            theirs += [t["avg_ts"] for t in tests if (t["n_prompt"] > 0) == (test == "pp")]
        for path in glob.glob(f"{results}/ours-{depth}-*.json"):
            tests = json.load(open(path))["tests"]
            ours += [t["tokens_per_second"] for t in tests if t["test"].startswith(test)]
        theirs, ours = statistics.median(theirs), statistics.median(ours)
        print(f"| {test}{512 if test == 'pp' else 64} @ {depth} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |")
PY
