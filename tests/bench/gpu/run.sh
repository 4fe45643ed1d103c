#!/usr/bin/env bash
# Measures the worker on an NVIDIA GPU beside PyTorch; see bench.py for what its options are. Where no GPU is, says so
# and measures nothing. `--emulated` tries the program itself, on the tests' GPU made of the CPU.
set -euo pipefail
cd "$(dirname "$0")/../../.."

target=${DRYDOCK_TARGET:-target}
folder=$(mkdir -p "$target/bench/gpu" && realpath "$target/bench/gpu")
if [[ " $* " == *" --emulated "* ]]; then
    jobs/worker/tests/emulated_gpu/build.sh "$folder/emulated"
    set -- "${@/--emulated/--emulated=$folder/emulated}"
elif ! nvidia-smi -L >/dev/null 2>&1; then
    # Nothing need be fetched or built to say so.
    exec python3 tests/bench/gpu/bench.py "$target/image-cuda/drydock-worker" "$folder"
fi
venv=${DRYDOCK_BENCH_VENV:-$target/bench/venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/bench/gpu/requirements.txt
fi
exec "$venv/bin/python" tests/bench/gpu/bench.py "$target/image-cuda/drydock-worker" "$folder" "$@"
