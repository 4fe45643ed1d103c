#!/usr/bin/env bash
# The whole way of one job: a model and a dataset go into the store, a finetune is submitted over MCP, runs in its
# container while its progress is shown, and leaves an adapter behind. Run it with `make demo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
started=$SECONDS

target=${DRYDOCK_TARGET:-target}
drydock=$(realpath "$target/release/drydock")
state=$(mkdir -p "$target/demo" && realpath "$target/demo")/state
model=smollm2-135m-instruct
dataset=drydock-qa
export DRYDOCK_CONFIG=/dev/null

. jobs/demo/gateway.sh

# Ends everything, however this script ends, and tells why if it did not come to its end.
finish() {
    local status=$?
    trap - EXIT INT TERM
    stop_gateway
    case $status in
        0) ;;
        130 | 143) printf '\nInterrupted; the job was cancelled and nothing is left running.\n' >&2 ;;
        *) printf '\nThe demo failed (exit %s); the gateway'"'"'s log is %s\n' "$status" "$state.log" >&2 ;;
    esac
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s\n' "$*"; }

step 'The model'
jobs/demo/setup.sh python
file=$(jobs/demo/model.sh)

step 'The gateway'
start_gateway
printf 'drydock listens at %s, its state is in %s\n' "$url" "$state"

step 'Model and dataset go into the store'
"$drydock" models add "$file" --name "$model" >/dev/null
"$drydock" datasets add jobs/demo/drydock-qa.jsonl --name "$dataset" >/dev/null

step 'A finetune is submitted over MCP'
arguments='{
  "model": "'$model'", "dataset": "'$dataset'",
  "lora_r": 8, "learning_rate": 1e-3, "num_train_epochs": 3,
  "per_device_train_batch_size": 8, "test_size": 0.1,
  "sample_prompts": ["What is drydock?"]
}'
submitted=$(python3 jobs/demo/mcp.py "$url" finetune "$arguments")
job=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["job"]["id"])' <<<"$submitted")
printf 'job %s is queued\n' "$job"

step 'It runs, and is measured before and after'
"$drydock" watch "$job"

step 'What it has made'
"$drydock" artifacts "$job"

step 'Use it from an MCP host'
cat <<END
Any host that starts its servers itself, as JSON:

    {"mcpServers": {"drydock": {"command": "$drydock", "args": ["--state-dir", "$state", "stdio"]}}}

Claude Code, the same in one line:

    claude mcp add drydock -- $drydock --state-dir $state stdio

Any host, over HTTP, while \`$drydock --state-dir $state serve\` runs:

    http://127.0.0.1:7717/mcp
END
printf '\ndone in %s s\n' "$((SECONDS - started))"
