#!/usr/bin/env bash
# Measures the worker beside PyTorch, PEFT, Transformers and llama.cpp; see bench.py for what its options are.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${DRYDOCK_TARGET:-target}
folder=$(mkdir -p "$target/bench" && realpath "$target/bench")
host=$(rustc -vV | sed -n 's/^host: //p')

[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
# llama.cpp is compiled for this very machine, which is the strongest peer that it can be; that takes ten minutes once.
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r tests/bench/requirements.txt
"$folder/venv/bin/python" tests/bench/prepare.py "$(jobs/demo/model.sh)" "$folder"
# Built like the worker of the image: for any CPU, the kernels being chosen at run time.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --quiet -p drydock-worker --example bench \
    --target "$host"
exec "$folder/venv/bin/python" tests/bench/bench.py "$target/$host/release/examples/bench" "$folder" "$@"
