#!/usr/bin/env bash
# tests/openapi.sh [ARGUMENT OF schemathesis run]...
#
# Proves that the control API and its description are one: starts `orchd serve --cloud`, fetches /openapi.json,
# validates it, and lets schemathesis send what the description allows, what it forbids, and sequences of both. No
# answer may be a 5xx, be of a status that is not described, or have a body that does not fit; what is allowed must be
# taken, and what is forbidden refused.
#
#   tests/openapi.sh                      the same requests every time, in less than a minute
#   tests/openapi.sh --seed 7 -n 1000     others, and more of them
#
# Needs Rust, Python 3.11 with pip 22.3, or later, and, the first time, a package index. CARGO_TARGET_DIR is honoured.
set -euo pipefail

if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^set /{ /^#/!d; s/^# \{0,1\}//; p; }' "${BASH_SOURCE[0]}"
    exit 0
fi

# shellcheck source=tests/venv.sh
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
config=$root/tests/openapi.toml
# Enough characters for orchd not to warn about it.
token=openapi-openapi-openapi-openapi-

install
say "building orchd"
cargo build --quiet --locked --manifest-path "$root/Cargo.toml"

work=$(mktemp -d "$target/openapi-XXXXXX")
server=""
# shellcheck disable=SC2317 # called by the trap
end() {
    if [[ $server ]]; then kill -KILL "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap end EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
env -i HOME="$work" PATH="$PATH" RUST_BACKTRACE=1 ORCHD_API_TOKEN="$token" \
    "$target/debug/orchd" serve --cloud --listen "127.0.0.1:$port" --state-dir "$work/state" >"$work/log" 2>&1 &
server=$!

# fetch URL FILE: waits until it is served.
fetch() {
    "$venv/bin/python" - "$1" "$2" "$token" <<'PYTHON'
import sys, time, urllib.request
url, file, token = sys.argv[1:]
request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
deadline = time.monotonic() + 10
while True:
    try:
        with urllib.request.urlopen(request, timeout=5) as answer, open(file, "wb") as out:
            out.write(answer.read())
        break
    except OSError as error:
        if time.monotonic() > deadline:
            sys.exit(f"{url}: {error}")
        time.sleep(0.05)
PYTHON
}

# fail WHAT: with the end of the log.
fail() {
    tail -n 40 "$work/log" >&2
    say "error: $1; the end of orchd's log is above"
    exit 1
}

fetch "$url/openapi.json" "$work/openapi.json" || fail "orchd serves no description"
"$venv/bin/openapi-spec-validator" "$work/openapi.json" >&2

status=0
(
    cd "$work" # where it keeps what it learns
    "$venv/bin/schemathesis" --config-file "$config" run "$url/openapi.json" --header "Authorization: Bearer $token" \
        --seed 1 --max-examples 40 --no-color --request-timeout 10 --output-truncate true "$@"
) || status=$?

kill -0 "$server" 2>/dev/null || fail "orchd has ended"
if grep -qE "ERROR|panicked" "$work/log"; then fail "orchd has logged an error"; fi
kill -TERM "$server"
stopped=0
wait "$server" || stopped=$?
server=""
if ((stopped)); then fail "orchd did not stop in good order (exit $stopped)"; fi
if ((status)); then
    say "error: the API and its description differ; what was found is above"
    exit 1
fi
say "the API is as it is described"
