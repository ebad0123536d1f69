#!/bin/sh
# Installs third-party programs that tests drive, each in a place of its own: .venv-callers/NAME.
#   tests/install_callers.sh [NAME...]      without a name: all of them
# tests/callers/NAME.txt pins a Python one (installed by uv), tests/callers/NAME/ holds package.json and
# package-lock.json of an npm one, and chromium is Debian's. Quick when nothing changed since.
set -eu
cd "$(dirname "$0")/.."
callers=tests/callers places=.venv-callers

# The system's certificates, as pip uses them: uv and node have lists of their own, which know no proxy.
system=/etc/ssl/certs/ca-certificates.crt
[ ! -f "$system" ] || export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$system}"

known() {
    for file in "$callers"/*.txt "$callers"/*/package.json; do
        case $file in
        *\**) ;;
        *.txt) basename "$file" .txt ;;
        *) basename "$(dirname "$file")" ;;
        esac
    done
    echo chromium
}

fresh() { # PLACE WANTED...: is PLACE what these files ask for?
    place=$1 && shift
    [ -f "$place/.ready" ] && cat "$@" | cmp -s - "$place/.ready"
}

python_one() { # NAME
    place=$places/$1 wanted=$callers/$1.txt
    fresh "$place" "$wanted" && return
    uv=.venv/bin/uv
    [ -x "$uv" ] || uv=$(command -v uv) || { echo "uv is missing: .venv/bin/python -m pip install uv" >&2; exit 1; }
    echo "installing $1 into $place"
    "$uv" venv --quiet --clear --python .venv/bin/python "$place"
    "$uv" pip install --quiet --system-certs --python "$place/bin/python" --requirements "$wanted"
    cp "$wanted" "$place/.ready"
}

npm_one() { # NAME
    place=$places/$1 wanted=$callers/$1
    fresh "$place" "$wanted/package.json" "$wanted/package-lock.json" && return
    echo "installing $1 into $place"
    mkdir -p "$place" && rm -f "$place/.ready"
    cp "$wanted/package.json" "$wanted/package-lock.json" "$place"
    npm --prefix "$place" ci --no-audit --no-fund --loglevel=error
    cat "$wanted/package.json" "$wanted/package-lock.json" >"$place/.ready"
}

chromium_one() {
    command -v chromium >/dev/null 2>&1 && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "chromium is missing (Debian: sudo apt-get install chromium)" >&2
        exit 1
    fi
    echo "installing chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
}

[ $# -gt 0 ] || set -- $(known)
for name in "$@"; do
    if [ "$name" = chromium ]; then
        chromium_one
    elif [ -f "$callers/$name.txt" ]; then
        python_one "$name"
    elif [ -f "$callers/$name/package.json" ]; then
        npm_one "$name"
    else
        echo "nobody knows '$name'; known are:" $(known) >&2
        exit 1
    fi
done
