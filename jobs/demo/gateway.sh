# Sourced by scripts that need a gateway of their own. They set `drydock`, the program, and `state`, its folder; after
# start_gateway, `url` is where it answers. Whatever happens, stop_gateway leaves nothing running.

# A free port is the gateway's to find; it writes the address into its state folder once it listens.
start_gateway() {
    mkdir -p "$state"
    rm -f "$state/address"
    # A session of its own: Ctrl-C reaches this script, which ends the job before the gateway.
    setsid "$drydock" serve --state-dir "$state" --listen 127.0.0.1:0 --offline "$@" \
        >"$state.log" 2>&1 </dev/null &
    gateway=$!
    local tries=0
    until [ -s "$state/address" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ] || ! kill -0 "$gateway" 2>/dev/null; then
            printf 'the gateway did not start; the end of %s:\n' "$state.log" >&2
            tail -n 10 "$state.log" >&2
            return 1
        fi
        sleep 0.1
    done
    url=http://$(cat "$state/address")
    export DRYDOCK_URL=$url
}

# Ends the jobs that are left, then the gateway. Containers outlive a gateway, so the jobs have to go first.
stop_gateway() {
    [ -n "${gateway:-}" ] || return 0
    local job
    for job in $("$drydock" jobs --state queued,running,stopping --json 2>/dev/null | sed -nE 's/^ *"id": "([0-9A-Z]{26})".*/\1/p'); do
        "$drydock" cancel "$job" >/dev/null 2>&1 || true
        timeout 60 "$drydock" watch "$job" >/dev/null 2>&1 || true
    done
    kill "$gateway" 2>/dev/null || true
    # A gateway that does not leave when asked is not waited for.
    timeout 15 tail --pid="$gateway" -f /dev/null || kill -KILL "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
    gateway=
}
