#!/bin/sh
# Makes sure that PYTHON is new enough and can make virtual environments; installs what is missing when it may.
set -eu
python=$1
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "sive needs Python 3.11 or newer; '$python' is not: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq python3-venv
else
    echo "'$python' cannot make virtual environments: install python3-venv (Debian: sudo apt-get install python3-venv)" >&2
    exit 1
fi
