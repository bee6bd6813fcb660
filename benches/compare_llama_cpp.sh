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
# The first run builds llama.cpp, see benches/build_llama_cpp.sh, and every new shape is written once for both. All of it
# goes to target/compare, or $COMPARE_DIR. Both use what the machine has; with MAX_CPU_ISA=avx2 or avx512 in the
# environment both use that. THREADS is taken from the environment too.
set -euo pipefail
cd "$(dirname "$0")/.."
shape=${1:-gpt-oss-20b} layers=${2:-4} dense=${3:-bf16} rounds=${4:-3} depths=${5:-0 4096}
threads=${THREADS:-$(nproc)}
source benches/build_llama_cpp.sh
build_llama_cpp llama-bench
cargo build --release --example bench
write_twins "$shape" "$layers" "$dense"

results=$(mktemp -d)
trap 'rm -r "$results"' EXIT
for round in $(seq "$rounds"); do
    for depth in $depths; do
        echo "round $round, depth $depth" >&2
        "$peer" -m "$twin" -t "$threads" -p 512 -n 64 -d "$depth" -r 1 -o json \
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
