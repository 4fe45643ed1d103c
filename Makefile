# `make help` lists the targets. Nothing here needs more than a shell, make and a Rust toolchain; what else is
# missing, jobs/demo/setup.sh installs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

target := $(or $(CARGO_TARGET_DIR),target)
nvcc = $(or $(DRYDOCK_NVCC),$(abspath $(target))/cuda/nvcc/nvidia/cu13/bin/nvcc)
host = $(shell rustc -vV | sed -n 's/^host: //p')
export DRYDOCK_TARGET := $(target)

.PHONY: help demo test test-faults test-sandbox check build worker worker-cuda image image-cuda engine interop bench bench-assign bench-estimate bench-gateway bench-gpu bench-learning conformance fuzz clean

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: compiler engine gateway image ## Finetune a small model, quantize it, and see whether it got better: over MCP, in sealed containers
	@jobs/demo/demo.sh

test: image python ## Run every test, also those that need a container engine
	@.ci/test.sh

test-faults: compiler engine ## Kill gateway and engine again and again, and hold every job against the truth
	DRYDOCK_FAULTS=full cargo test --locked -p drydock --test faults

test-sandbox: compiler engine ## Have hostile jobs try everything, also on engines of their own: see .github/SECURITY.md
	DRYDOCK_TEST_ENGINES=1 cargo test --locked -p drydock --test sandbox --test artifacts --test security_page
	cargo test --locked -p drydock --test attempts --test gateway hostile
	cargo test --locked -p drydock --lib -- hostile legible reports sandbox doctor preview

check: compiler ## Formatting, lints and the walls between the crates
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	cargo clippy -p drydock-worker --features cuda --all-targets --locked --quiet -- -D warnings
	@.ci/walls.sh

build: compiler ## Build the gateway to keep
	cargo build --release --locked -p drydock

worker: compiler ## Build the worker, one static program
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked -p drydock-worker --target $(host)

worker-cuda: compiler nvcc ## Build the worker that computes on NVIDIA GPUs, too; it starts without one
	DRYDOCK_NVCC=$(nvcc) cargo build --release --locked -p drydock-worker --features cuda
	@mkdir -p $(target)/image-cuda
	@install $(target)/release/drydock-worker $(target)/image-cuda/
	@ls -l $(target)/image-cuda/drydock-worker

image: compiler engine worker ## Build the worker's image
	@mkdir -p $(target)/image
	@cp $(target)/$(host)/release/drydock-worker images/worker.Dockerfile $(target)/image/
	docker build --quiet --file $(target)/image/worker.Dockerfile --tag drydock-worker:latest $(target)/image

image-cuda: engine worker-cuda cublas nccl ## Build the worker's image for NVIDIA GPUs: cuBLAS, NCCL and nothing else, 833 MB
	@images/cuda-root.sh $(target)/image-cuda/drydock-worker $(target)/cuda/cublas/nvidia/cu13/lib \
		$(target)/cuda/nccl/nvidia/nccl/lib $(target)/image-cuda/root
	@cp images/worker-cuda-small.Dockerfile $(target)/image-cuda/Dockerfile
	docker build --quiet --tag drydock-worker:cuda $(target)/image-cuda

interop: gateway image worker venv ## Try the programs that people use: MCP clients, PEFT, Transformers, llama.cpp
	@.ci/interop.sh
	@tests/interop/trainer.sh

bench: compiler engine venv ## Measure the worker beside PyTorch, PEFT, Transformers and llama.cpp, the gateway under load, what it learns, and its line
	@tests/bench/run.sh $(BENCH)
	@tests/bench/load/run.sh $(LOAD)
	@cargo bench --locked --quiet -p drydock --bench diagnose
	cargo bench --locked --quiet -p drydock --bench learning -- $(LEARNING)
	@cargo bench --locked --quiet -p drydock-gpu --bench assign

bench-estimate: compiler ## Hold the plan's estimates against the worker: 40 jobs, their memory by part and what it peaked at
	cargo build --release --locked --quiet -p drydock-worker
	DRYDOCK_GRID=full DRYDOCK_WORKER=$(abspath $(target))/release/drydock-worker \
		cargo test --locked --quiet -p drydock --test estimate -- --nocapture

bench-gateway: compiler engine venv ## Measure the gateway alone: under load, beside other MCP servers
	@tests/bench/load/run.sh $(LOAD)

bench-gpu: ## Measure the worker on an NVIDIA GPU beside PyTorch; BENCH=--emulated tries the bench without one
	@if [ -n "$(BENCH)" ] || nvidia-smi -L >/dev/null 2>&1; then $(MAKE) --no-print-directory worker-cuda venv; fi
	@tests/bench/gpu/run.sh $(BENCH)

bench-learning: compiler ## Measure whether what helped against failures is learnt: no engine, no worker, some minutes
	cargo bench --locked --quiet -p drydock --bench learning -- $(LEARNING)

bench-assign: compiler ## Simulate a day of 10,000 jobs on 64 GPUs: who waits for how long, under which rule of the line
	@cargo bench --locked --quiet -p drydock-gpu --bench assign

conformance: compiler venv ## Run the MCP conformance suite
	@tests/conformance/run.sh

fuzz: compiler ## Fuzz what reads other people's files: TARGET=gguf SECONDS=300; the targets are in jobs/worker/fuzz
	@cp Cargo.lock jobs/worker/fuzz/Cargo.lock
	cd jobs/worker/fuzz && mkdir -p corpus/$(or $(TARGET),gguf) && \
		cargo run --release --quiet --bin $(or $(TARGET),gguf) -- corpus/$(or $(TARGET),gguf) seeds/$(or $(TARGET),gguf) \
		-max_total_time=$(or $(SECONDS),300) -rss_limit_mb=2048 -max_len=8192 -artifact_prefix=corpus/$(or $(TARGET),gguf)-

clean: ## Remove what was built, and the demo's state
	cargo clean

.PHONY: compiler gateway
# Unoptimised: it takes a third of the time, the tests use the same build, and the arithmetic is all the worker's.
gateway: compiler
	cargo build --locked -p drydock

compiler:
	@jobs/demo/setup.sh compiler

engine:
	@jobs/demo/setup.sh engine

.PHONY: python venv nvcc cublas nccl
nvcc:
	@jobs/demo/setup.sh nvcc

cublas:
	@jobs/demo/setup.sh cublas

nccl:
	@jobs/demo/setup.sh nccl

python:
	@jobs/demo/setup.sh python

venv:
	@jobs/demo/setup.sh python venv
