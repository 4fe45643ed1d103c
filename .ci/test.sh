#!/usr/bin/env bash
# Runs every test of the workspace and ends with one line: N passed, N failed, N skipped.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
log=$(mktemp)
trap 'rm -f "$log"' EXIT

cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
status=$?
# The worker once more with its part for NVIDIA GPUs, on one made of the CPU.
cargo test --locked --no-fail-fast -p drydock-worker --features cuda --test cuda 2>&1 | tee -a "$log" || status=1
awk '
    # A test that cannot run here says so in a line of its own, and then counts as passed to cargo.
    /^(test [^ ]+ \.\.\. )?skipped: / { skipped++; passed-- }
    /^test result: / { passed += $4; failed += $6; skipped += $8; binaries++ }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit binaries == 0 }
' "$log" || exit 1
exit "$status"
