#!/bin/sh
# Downloads a model for the CPU and makes it int8, so that it is the image's last rung; without MODEL it does nothing.
#   serve/image/weights.sh FOLDER CACHE [MODEL]
set -eu
folder=$1 cache=$2 model=${3:-}
mkdir -p "$cache/sive/weights"
if [ -n "$model" ]; then
    HF_HOME=$(mktemp -d)
    export HF_HOME
    "$folder/bin/sive" weights prepare "$model" --weights-dir "$cache/sive/weights"
    rm -rf "$HF_HOME"
fi
