# shellcheck shell=bash
# tests/venv.sh
#
# What the scripts share that need Python packages: sourced, it sets `root`, `target`, `venv` and `requirements`, and
# defines `say` and `install`, which makes `venv` hold what `requirements` names. Whoever needs others sets these two anew.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${CARGO_TARGET_DIR:-$root/target}"
target=$(cd "${CARGO_TARGET_DIR:-$root/target}" && pwd)
venv=$target/venv
requirements=$root/tests/requirements.txt

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

install() {
    # One of two runs at once installs, the other waits. The stamp is put there last: finding it is enough to go on.
    local hash stamp lock names=${requirements#"$root/"}
    hash=$(sha256sum <"$requirements")
    stamp=$venv/.installed-${hash:0:16}
    if [[ -e $stamp ]]; then return; fi
    exec {lock}>"$venv.lock"
    flock "$lock"
    if [[ ! -e $stamp ]]; then
        say "installing what $names names (once)"
        rm -rf "$venv"
        # Without pip of its own: a Python that comes without ensurepip, as Debian's, can make such a one.
        python3 -m venv --without-pip "$venv"
        PIP_REQUIRE_VIRTUALENV=false python3 -m pip --python "$venv/bin/python" --quiet --disable-pip-version-check \
            --no-input install --only-binary :all: --requirement "$requirements" >&2 || {
            say "error: pip could not install what $names names; what it said is above"
            say "  hint: it takes pip 22.3 and Python 3.11, or later; a mirror is named in PIP_INDEX_URL"
            exit 1
        }
        : >"$stamp"
    fi
    exec {lock}>&-
}
