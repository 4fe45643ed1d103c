#!/usr/bin/env bash
# The walls between the crates and a few habits that no compiler checks. Prints what breaks them.
set -euo pipefail
cd "$(dirname "$0")/.."
broken=0

# complain WHAT LINES: says so if there are any lines.
complain() {
    [ -z "$2" ] && return
    printf 'walls: %s:\n%s\n' "$1" "$2" >&2
    broken=1
}

# no_dependency CRATE PATTERN: what is linked into CRATE has no crate whose name matches.
no_dependency() {
    complain "$1 depends on what it must not" \
        "$(cargo tree --locked -p "$1" -e normal --prefix none | cut -d' ' -f1 | sort -u | grep -E "$2" || true)"
}

# only_in PATTERN PATHS...: Rust code that matches stands nowhere but there.
only_in() {
    local pattern=$1
    shift
    complain "\`$pattern\` outside of $*" \
        "$(git grep -nE "$pattern" -- 'runner/*.rs' 'gpu/*.rs' 'jobs/*.rs' "${@/#/:!}" || true)"
}

no_dependency drydock '^candle'
no_dependency drydock-gpu '^(candle|tokio|sqlx|bollard|rmcp|drydock$)'
no_dependency drydock-spec '^(candle|tokio|sqlx|bollard|rmcp|drydock$|drydock-gpu)'
no_dependency drydock-worker '^(tokio|sqlx|bollard|rmcp|reqwest|hf-hub|drydock$|drydock-gpu)'

only_in '\bcandle_core\b' 'jobs/worker/*'
only_in '\bbollard(::|\b.*;$)' 'runner/sandbox/docker*'
only_in '\bsqlx(::|\b.*;$)' 'runner/store*'
only_in '\brmcp(::|\b.*;$)' 'runner/gateway*'

complain 'unfinished code' "$(git grep -nE '\b(todo|unimplemented|dbg)!\(|#\[ignore' -- '*.rs' || true)"
complain 'a path of somebody'"'"'s machine' "$(git grep -nIE '/(home|root|Users|work|mnt)/[a-z]' || true)"
complain 'a module named mod.rs' "$(git ls-files '*mod.rs' | grep -E '(^|/)mod\.rs$' || true)"
complain 'a file named for no subject' \
    "$(git ls-files '*.rs' | grep -E '(^|/)(manager|helpers?|utils?|common|handlers?|services?)(\.rs|/)' || true)"
complain 'more than 500 lines' \
    "$(git ls-files -z '*.rs' | xargs -0 wc -l | awk '$2 != "total" && $1 > 500 { print $2 ": " $1 }')"

[ "$broken" = 0 ] && echo 'walls: they stand'
exit "$broken"
