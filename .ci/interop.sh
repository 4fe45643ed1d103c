#!/usr/bin/env bash
# Runs the MCP clients that people use against a gateway of its own: the Python and the Node SDK.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${DRYDOCK_TARGET:-target}
drydock=$(realpath "$target/release/drydock")
folder=$(mkdir -p "$target/interop" && realpath "$target/interop")
state=$folder/state
export DRYDOCK_CONFIG=/dev/null
. jobs/demo/gateway.sh
trap stop_gateway EXIT
trap 'exit 130' INT TERM

start_gateway
"$drydock" models add "$(jobs/demo/model.sh)" --name interop-model >/dev/null
"$drydock" datasets add jobs/demo/drydock-qa.jsonl --name interop-dataset >/dev/null

echo 'interop: Python, mcp 2.3.0'
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mcp==2.3.0
"$folder/venv/bin/python" tests/interop/mcp_python.py "$url/mcp" interop-model interop-dataset

echo 'interop: Node, @modelcontextprotocol/sdk 1.32.2'
npm install --silent --no-fund --no-audit --prefix "$folder/node" @modelcontextprotocol/sdk@1.32.2 >/dev/null
cp tests/interop/mcp_node.mjs "$folder/node/"
node "$folder/node/mcp_node.mjs" "$url/mcp" interop-model interop-dataset
echo 'interop: all clients agree'
