#!/usr/bin/env bash
# tests/openai.sh [ARGUMENT OF pytest]...
#
# Proves that whoever talks to llama-server with the official `openai` client can talk to orchd instead: starts real
# engines, `orchd serve` over them (HOME), and `orchd serve --cloud` with an agent, all behind tokens, and lets the client
# ask for all that it knows, streaming and not; what comes through orchd is what the engine says itself. Errors are the
# client's own exceptions, a stream that breaks off is none that ended, and /v1/messages is asked in Anthropic's form.
#
#   tests/openai.sh                     all of it, in less than a minute
#   tests/openai.sh -k tools -x         tests with "tools" in their names, up to the first that fails
#
# Needs Rust, Linux on x86_64 (for the engine, see tests/engine/fetch.sh), Python 3.11 with pip 22.3, or later, and, the
# first time, a package index. CARGO_TARGET_DIR is honoured.
set -euo pipefail

if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^set /{ /^#/!d; s/^# \{0,1\}//; p; }' "${BASH_SOURCE[0]}"
    exit 0
fi

# shellcheck source=tests/venv.sh
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

install
# Named already when tests/run calls this.
engine=${ORCHD_TEST_ENGINE_DIR:-$("$root/tests/engine/fetch.sh")}
say "building orchd"
cargo build --quiet --locked --manifest-path "$root/Cargo.toml"

work=$(mktemp -d "$target/openai-XXXXXX")
# shellcheck disable=SC2317 # called by the trap
end() { rm -rf "$work"; }
trap end EXIT

status=0
# Whatever the processes say is in files of $work; they end with the tests, however those end.
env -i HOME="$work" PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 ORCHD_TEST_ENGINE_DIR="$engine" \
    ORCHD_TEST_EXECUTABLE="$target/debug/orchd" ORCHD_TEST_LOGS="$work" \
    "$venv/bin/python" -m pytest -q --no-header --color=no --strict-markers -p no:cacheprovider \
    -c /dev/null --rootdir "$root/tests/openai" "$@" "$root/tests/openai" >&2 || status=$?
if ((status)); then
    for log in "$work"/orchd-*.log; do
        if [[ -e $log ]]; then
            say "the end of ${log##*/}:"
            tail -n 20 "$log" >&2
        fi
    done
    say "error: the client is not served as the engine serves it; what was found is above"
    exit 1
fi
say "the client is served as by the engine itself"
