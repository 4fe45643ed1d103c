#!/usr/bin/env bash
# Measures the worker beside PyTorch, PEFT, Transformers and llama.cpp; see bench.py for what its options are.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${DRYDOCK_TARGET:-target}
folder=$(tests/bench/venv.sh)
host=$(rustc -vV | sed -n 's/^host: //p')
# Built like the worker of the image: for any CPU, the kernels being chosen at run time.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --quiet -p drydock-worker --example bench \
    --target "$host"
exec "$folder/venv/bin/python" tests/bench/bench.py "$target/$host/release/examples/bench" "$folder" "$@"
