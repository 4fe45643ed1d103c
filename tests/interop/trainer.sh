#!/usr/bin/env bash
# Gives what the trainer makes to PEFT, Transformers and llama.cpp; see trainer.py. ROWS=FILE adds the long comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${DRYDOCK_TARGET:-target}
folder=$(tests/bench/venv.sh)
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
worker=$(realpath "$target/$(rustc -vV | sed -n 's/^host: //p')/release/drydock-worker")
"$folder/venv/bin/python" tests/interop/trainer.py "$worker" "$folder" ${ROWS:+--rows "$ROWS"}
