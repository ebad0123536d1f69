#!/bin/sh
# Makes a virtual environment with what sive needs, exactly as locked, and nothing in it to build or install with.
#   serve/image/venv.sh FOLDER LOCK_FILE
# Whatever Python 3.11 or newer is there will do, with pip, or with python3-venv, or with uv beside it.
set -eu
folder=$1 lock=$2
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "sive needs Python 3.11 or newer, and $(command -v python3) is not" >&2
    exit 1
fi
python3 -m venv --without-pip "$folder" # needs no ensurepip, which Debian and Ubuntu keep in a package of its own
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
if python3 -m pip --python "$folder/bin/python3" --version >/dev/null 2>&1; then # since pip 22.3
    installer=python3
elif python3 -m venv "$tools" >/dev/null 2>&1; then
    installer=$tools/bin/python3
elif command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --no-cache --compile-bytecode --python "$folder/bin/python3" \
        --only-binary :all: --require-hashes --requirement "$lock"
    exit
else
    echo "nothing here can install $lock: add pip, python3-venv or uv" >&2
    exit 1
fi
PIP_ROOT_USER_ACTION=ignore "$installer" -m pip --python "$folder/bin/python3" --disable-pip-version-check \
    install --quiet --no-cache-dir --only-binary :all: --require-hashes --requirement "$lock"
