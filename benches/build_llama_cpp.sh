# To be sourced: build_llama_cpp TARGET builds llama-bench or llama-server, where it is not there yet, of the sources in the
# Python package llama-cpp-python (about eight minutes of a core), and sets `peer` to it. All of it goes to target/compare,
# or $COMPARE_DIR, which is left in `dir`. MAX_CPU_ISA in the environment limits llama.cpp as it does this crate, in a
# build of its own. Needs Python 3 with venv, and a C++ compiler.
dir=$(realpath -m "${COMPARE_DIR:-target/compare}")

build_llama_cpp() {
    local target=$1 build isa
    local avx2=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
    case ${MAX_CPU_ISA:-} in
        "") build=build isa=(-DGGML_NATIVE=ON) ;;
        avx2) build=build-avx2 isa=("${avx2[@]}") ;;
        avx512) build=build-avx512 isa=("${avx2[@]}" -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON) ;;
        *) echo "MAX_CPU_ISA is $MAX_CPU_ISA, expected avx2 or avx512: llama.cpp has no build to compare with" >&2; return 1 ;;
    esac
    peer=$dir/$build/bin/$target
    mkdir -p "$dir"
    [ ! -x "$peer" ] || return 0
    echo "building $target in $dir/$build" >&2
    (
        set -e
        cd "$dir"
        [ -d venv ] || python3 -m venv venv
        export PATH=$dir/venv/bin:$PATH
        pip install -q scikit-build-core cmake ninja numpy gguf
        if [ ! -d llama_cpp_python-0.3.36 ]; then
            pip download -q --no-deps --no-build-isolation --no-binary :all: llama-cpp-python==0.3.36
            tar xzf llama_cpp_python-0.3.36.tar.gz
            # gcc 12 drops the stores of the AMX tile configuration (SIGILL at the first Q8_0 product).
            sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' \
                llama_cpp_python-0.3.36/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
        fi
        # Its web page would be downloaded.
        cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
            "${isa[@]}" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
        cmake --build "$build" --target "$target"
    ) > "$dir/$build.log" 2>&1 || { tail "$dir/$build.log" >&2; return 1; }
}

# The same random weights of a shape for both engines: `model`, a checkpoint, and `twin`, a GGUF file, with a vocabulary
# so that servers load.
write_twins() {
    local shape=$1 layers=$2 quant=bf16
    [ "$3" != q8 ] || quant=q8_0
    model=$dir/$shape-$layers twin=$dir/$shape-$layers-$quant.gguf
    if [ ! -e "$model/config.json" ]; then
        cargo run --release --example bench -- --synthetic "$shape" --layers "$layers" --save "$model"
    fi
    if [ ! -e "$model/tokenizer.json" ] || [ ! -e "$twin" ]; then
        "$dir/venv/bin/python" benches/gguf_twin.py "$model" "$twin.part" "$quant"
        mv "$twin.part" "$twin"
    fi
}
