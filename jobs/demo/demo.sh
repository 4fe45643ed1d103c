#!/usr/bin/env bash
# "Finetune this model on my rows, quantize it to Q4_K_M, and tell me whether it got better": a model and rows go into the
# store, three jobs that read one another's results are submitted over MCP at once, they run in their containers while
# their progress is shown, and the last one's answer is the answer. Run it with `make demo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
started=$SECONDS

target=${DRYDOCK_TARGET:-target}
drydock=$(realpath "$target/debug/drydock")
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

step 'Model and rows go into the store'
# Every tenth question is kept for the end: nothing is learnt from it.
awk -v rows="$(dirname "$state")" '{ print > (rows (NR % 10 ? "/learn.jsonl" : "/ask.jsonl")) }' jobs/demo/drydock-qa.jsonl
"$drydock" models add "$file" --name "$model" >/dev/null
# Named with its rows, the model's tokenizer counts them: so plans know how long they are.
"$drydock" datasets add "$(dirname "$state")/learn.jsonl" --name "$dataset" --model "$model" >/dev/null
"$drydock" datasets add "$(dirname "$state")/ask.jsonl" --name "$dataset-held-out" >/dev/null 2>&1

# submit TOOL ARGUMENTS: the new job's id; the request is shown to people.
submit() {
    python3 jobs/demo/mcp.py "$url" "$1" "$2" | python3 -c 'import json, sys; print(json.load(sys.stdin)["job"]["id"])'
}

step 'Three jobs are submitted over MCP: finetune, quantize the result, compare'
finetune=$(submit finetune '{
  "model": "'$model'", "dataset": "'$dataset'", "eval_dataset": "'$dataset'-held-out",
  "lora_r": 8, "learning_rate": 1e-3, "num_train_epochs": 3,
  "per_device_train_batch_size": 8,
  "sample_prompts": ["What is drydock?"]
}')
quantize=$(submit quantize '{"model": "job:'$finetune'", "quant_type": "Q4_K_M"}')
evaluate=$(submit evaluate '{
  "model": "'$model'", "adapter": "job:'$finetune'", "compare_with": [{"model": "job:'$quantize'"}],
  "dataset": "'$dataset'-held-out", "measures": ["perplexity"]
}')

step 'The finetune, measured before and after'
"$drydock" watch "$finetune"

step 'The quantization waited for it'
"$drydock" watch "$quantize"

step 'Base, adapter and quantized model side by side, on rows that nobody learnt from'
"$drydock" watch "$evaluate"

step 'What they have made'
"$drydock" artifacts "$finetune"
"$drydock" artifacts "$quantize"

step 'Did it get better?'
python3 jobs/demo/mcp.py "$url" get_job '{"id": "'$evaluate'"}' 2>/dev/null | python3 jobs/demo/verdict.py

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
