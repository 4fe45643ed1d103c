#!/usr/bin/env bash
# Makes this machine ready, piece by piece: `setup.sh compiler engine python pip venv nvcc cublas nccl`. What is there is
# left alone, what is missing is installed, and each piece says in one line how it stands. Works as root, and with sudo
# otherwise.
set -euo pipefail

state=${DRYDOCK_TARGET:-target}/setup
pidfile=/var/run/docker.pid
containerd_pidfile=/var/run/docker/containerd/containerd.pid
# dockerd lies where Debian lets only root look for programs; a user would find none and install it again.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif has sudo; then sudo "$@"
    else fail "\`$*\` needs root, and there is no sudo; run it as root and try again"
    fi
}

apt_install() {
    has apt-get || fail "$* is missing and there is no apt-get; install it by hand and try again"
    say "installing $* with apt-get"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    # Package lists may be missing or old; only then they are fetched.
    as_root "${install[@]}" >/dev/null 2>&1 || { as_root apt-get update -qq && as_root "${install[@]}" >/dev/null; }
}

need_compiler() {
    has cargo || fail "cargo is missing; install Rust 1.95 or newer from https://rustup.rs and try again"
    # C for what Rust crates bring along, C++ for the tests' GPU made of the CPU.
    has cc && has c++ || apt_install build-essential
}

need_python() {
    has python3 || apt_install python3
    say "$(python3 --version)"
}

need_pip() {
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
    say "$(python3 -m pip --version | cut -d' ' -f1,2)"
}

# Debian's Python has the module venv, but not the one that puts pip into an environment.
need_venv() {
    python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
    say "Python makes environments"
}

# pinned FILE FOLDER: puts into FOLDER what FILE names by version and hash, unless it is all there.
pinned() {
    cmp -s "$1" "$2/pinned.txt" && return
    need_pip
    rm -rf "$2"
    mkdir -p "$2"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary=:all: --no-compile --target "$2" -r "$1" || fail "$1 could not be fetched; see what pip says above"
    cp "$1" "$2/pinned.txt"
}

# For the GPU kernels. A compiler of one's own is used instead where DRYDOCK_NVCC names it.
need_nvcc() {
    local folder=${DRYDOCK_TARGET:-target}/cuda/nvcc nvcc=${DRYDOCK_NVCC:-}
    if [ -z "$nvcc" ]; then
        pinned jobs/worker/cuda/nvcc.txt "$folder"
        nvcc=$folder/nvidia/cu13/bin/nvcc
        chmod +x "$folder"/nvidia/cu13/bin/* "$folder"/nvidia/cu13/nvvm/bin/*
    fi
    say "$("$nvcc" --version | sed -n 's/^Cuda compilation tools, /nvcc, /p')"
}

# What a program that multiplies on a GPU opens when it does: 423 MB.
need_cublas() {
    pinned jobs/worker/cuda/cublas.txt "${DRYDOCK_TARGET:-target}/cuda/cublas"
    say "cuBLAS $(sed -n 's/^nvidia-cublas==\([^ ]*\).*/\1/p' jobs/worker/cuda/cublas.txt)"
}

# What a training on several GPUs opens: 196 MB.
need_nccl() {
    pinned jobs/worker/cuda/nccl.txt "${DRYDOCK_TARGET:-target}/cuda/nccl"
    say "NCCL $(sed -n 's/^nvidia-nccl-cu13==\([^ ]*\).*/\1/p' jobs/worker/cuda/nccl.txt)"
}

engine_answers() { docker version >/dev/null 2>&1; }
# runs PROGRAM PIDFILE. The pid may be left from before a restart and be another process's by now, or a dead one's that
# nobody has buried.
runs() {
    local status
    status=$(cat "/proc/$(cat "$2" 2>/dev/null)/status" 2>/dev/null) || return 1
    grep -q "^Name:[[:space:]]*$1\$" <<<"$status" && ! grep -q '^State:[[:space:]]*Z' <<<"$status"
}
engine_runs() { runs dockerd "$pidfile"; }
engine_refuses_us() { [[ $(docker version 2>&1) == *'permission denied'* ]]; }

need_engine() {
    local ours=no
    if ! has docker || ! has dockerd && ! engine_answers; then
        apt_install docker.io iptables
        ours=yes
    fi
    engine_answers || start_engine "$ours"
    say "Docker $(docker version --format '{{.Server.Version}}') answers"
}

# Starts the engine that is installed, unless it runs. `$1` is yes if this script installed it.
start_engine() {
    [ -z "${DOCKER_HOST:-}" ] || fail "nothing answers at DOCKER_HOST=$DOCKER_HOST; start it, or unset DOCKER_HOST"
    if engine_runs; then :
    elif [ -d /run/systemd/system ]; then
        say "starting docker.service"
        as_root systemctl start docker
    else
        start_dockerd
    fi
    wait_for_engine
    if ! engine_answers && [ "$1" = yes ]; then
        # A new engine, and a user who is not in its group before the next login.
        say "giving $(id -un) access to Docker"
        as_root usermod -aG docker "$(id -un)"
        as_root chgrp "$(id -g)" /var/run/docker.sock
    fi
    engine_answers || fail "Docker runs but does not answer $(id -un): $(docker version 2>&1 | tail -n 1)
setup: hint: sudo usermod -aG docker $(id -un), then log in again"
}

# Without systemd nobody else starts it. It stays when this script and the demo are over, as it would with systemd.
start_dockerd() {
    mkdir -p "$state"
    # dockerd does not start while the pid in one of these files is anybody's, be it a dead process's.
    as_root rm -f "$pidfile"
    as_root bash -c "$(declare -f runs); runs containerd $containerd_pidfile || rm -f $containerd_pidfile"
    say "starting dockerd; its log is $state/dockerd.log"
    as_root setsid --fork dockerd --group "$(id -g)" >"$state/dockerd.log" 2>&1 </dev/null
}

# Until it answers, or says that it will not answer this user.
wait_for_engine() {
    local tries=0
    until engine_answers || engine_refuses_us; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || fail "Docker did not start within a minute:
$(tail -n 5 "$state/dockerd.log" 2>/dev/null)"
        sleep 0.5
    done
}

for piece in "$@"; do
    case $piece in
        compiler | engine | python | pip | venv | nvcc | cublas | nccl) "need_$piece" ;;
        *) fail "unknown piece \`$piece\`; known are compiler, engine, python, pip, venv, nvcc, cublas, nccl" ;;
    esac
done
