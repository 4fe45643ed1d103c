# The worker for NVIDIA GPUs, over NVIDIA's own image with cuBLAS and NCCL: for those who build on it, or want a shell inside.
# The smaller one with the same program, which `make image-cuda` builds, is in worker-cuda-small.Dockerfile.
#
# The build context holds `drydock-worker`, built by `make worker-cuda`, and this file:
# DOCKER_BUILDKIT=0 docker build -f worker-cuda.Dockerfile -t drydock-worker:cuda <context>
ARG BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04
FROM ${BASE}
COPY drydock-worker /drydock-worker
# NVIDIA's images ask for every GPU of the host, which a host whose engine uses NVIDIA's runtime for all containers
# would grant. drydock says which ones a container gets; without it, there is none.
ENV NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
ENTRYPOINT ["/drydock-worker"]
LABEL org.opencontainers.image.title="drydock-worker" \
      org.opencontainers.image.description="Runs one attempt of a drydock job, on NVIDIA GPUs too" \
      org.opencontainers.image.licenses="Apache-2.0" \
      drydock.contract="1" \
      drydock.devices="cpu,cuda:8"
