#!/usr/bin/env bash
# Measures the gateway under load, beside peers; see main.rs for what its options are.
set -euo pipefail
cd "$(dirname "$0")/../../.."

cargo bench --locked --quiet -p drydock --bench load -- "$@"
