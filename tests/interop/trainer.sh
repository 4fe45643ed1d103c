#!/usr/bin/env bash
# Gives what the trainer makes to PEFT, Transformers and llama.cpp; see trainer.py. ROWS=FILE adds the long comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${DRYDOCK_TARGET:-target}
folder=$(tests/bench/venv.sh)
worker=$(realpath "$target/$(rustc -vV | sed -n 's/^host: //p')/release/drydock-worker")
"$folder/venv/bin/python" tests/interop/trainer.py "$worker" "$folder" ${ROWS:+--rows "$ROWS"}
