#!/usr/bin/env bash
# Makes an environment with PyTorch, PEFT, Transformers and llama.cpp, and the demo's model in every form that they need;
# prints the folder. What is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${DRYDOCK_TARGET:-target}
folder=$(mkdir -p "$target/bench" && realpath "$target/bench")
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
# llama.cpp is compiled for this very machine, which is the strongest peer that it can be; that takes ten minutes once.
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r tests/bench/requirements.txt >&2
"$folder/venv/bin/python" tests/bench/prepare.py "$(jobs/demo/model.sh)" "$folder" >&2
printf '%s\n' "$folder"
