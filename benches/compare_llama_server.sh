#!/usr/bin/env bash
# `serve` beside llama.cpp's llama-server, on the same random weights and cores, in turn: benches/serve_load.py drives both.
#
# usage: benches/compare_llama_server.sh [SHAPE [LAYERS [DENSE]]]
#   SHAPE   gpt-oss-20b (default), gpt-oss-120b
#   LAYERS  how many of its first layers, 4 by default
#   DENSE   bf16 (default) or q8, which is Q8_0 for llama.cpp
#
# Throughput is measured of `llama-server -np 8`. Beside eight running answers that would leave no place for the prompts
# which arrive, so there it gets -np 16, which is also what `serve` takes. The first run builds llama.cpp, see
# benches/build_llama_cpp.sh. Figures go to target/compare, or $COMPARE_DIR, as JSON. THREADS and MAX_CPU_ISA are taken
# from the environment, and LOAD, further arguments of serve_load.py. Takes about half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
shape=${1:-gpt-oss-20b} layers=${2:-4} dense=${3:-bf16}
threads=${THREADS:-$(nproc)}
source benches/build_llama_cpp.sh
build_llama_cpp llama-server
cargo build --release -p serve
write_twins "$shape" "$layers" "$dense"

server=
end_server() { [ -z "$server" ] || { kill "$server" && wait "$server" || true; } 2>/dev/null; server=; }
trap end_server EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Starts a server on $port, its output in a log, and waits until it answers.
start() {
    local log=$dir/$1.log
    shift
    "$@" > "$log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        if python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; then
            return 0
        fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.5
    done
    tail "$log" >&2
    return 1
}

# load NAME PART: PART of the figures of the server on $port.
load() {
    python3 benches/serve_load.py "http://127.0.0.1:$port" --only "$2" --json "$dir/$1-$2.json" ${LOAD:-} >&2
}

# llama-server divides its context among its places.
theirs() {
    port=$(free_port)
    echo "llama-server -np $1: $2" >&2
    start "llama-server-$1" "$peer" -m "$twin" -np "$1" -c $((4096 * $1)) -t "$threads" -tb "$threads" \
        --host 127.0.0.1 --port "$port" --no-ui --cache-ram 0
    load "llama-server-$1" "$2"
    end_server
}
ours() {
    port=$(free_port)
    echo "serve --max-num-seqs $1: $2" >&2
    start "serve-$1" target/release/serve --model "$model" --dense-dtype "$dense" --threads "$threads" \
        --max-num-seqs "$1" --max-model-len 4096 --host 127.0.0.1 --port "$port"
    load "serve-$1" "$2"
    end_server
}

ours 32 throughput
theirs 8 throughput
ours 16 latency
theirs 16 latency

python3 - "$dir" "$shape, $layers layers, dense $dense, $threads threads" <<'PY'
import json, sys

dir, title = sys.argv[1:]
read = lambda name, part: json.load(open(f"{dir}/{name}-{part}.json"))[part]
print(title)
print("| | llama-server | serve | ratio |\n|---|---|---|---|")
pairs = zip(read("llama-server-8", "throughput"), read("serve-32", "throughput"))
for theirs, ours in pairs:
    name, theirs, ours = f"{ours['answers']} at once, tokens/s", theirs["tokens_per_second"], ours["tokens_per_second"]
    print(f"| {name} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} |")
theirs, ours = read("llama-server-16", "latency"), read("serve-16", "latency")
for name, key in (
    ("a prompt alone, tokens/s", "prompt_tokens_per_second_alone"),
    ("prompts that arrive per second", "arrivals_per_second"),
    ("first token p50, s", "first_token_p50"),
    ("first token p99, s", "first_token_p99"),
    ("running answers, tokens/s", "running_tokens_per_second"),
    ("between tokens p99, s", "gap_p99"),
    ("longest between tokens, s", "longest_gap"),
):
    print(f"| {name} | {theirs[key]:.2f} | {ours[key]:.2f} | {ours[key] / theirs[key]:.2f} |")
PY
