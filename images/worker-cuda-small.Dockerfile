# The worker for NVIDIA GPUs, and nothing but what it opens: the C and C++ libraries, cuBLAS and NCCL, in /lib. No shell,
# no /etc. The driver's libraries come from the host, with the GPU.
#
# The build context holds this file and `root`, which images/cuda-root.sh puts together: `make image-cuda` does both.
FROM scratch
COPY root/ /
# Where NVIDIA's own tools put the driver's libraries, as there is no cache of the linker's to find them by.
ENV LD_LIBRARY_PATH=/lib:/usr/lib/x86_64-linux-gnu:/usr/lib64 \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
ENTRYPOINT ["/drydock-worker"]
LABEL org.opencontainers.image.title="drydock-worker" \
      org.opencontainers.image.description="Runs one attempt of a drydock job, on NVIDIA GPUs too" \
      org.opencontainers.image.licenses="Apache-2.0" \
      drydock.contract="1" \
      drydock.devices="cpu,cuda:8"
