# The worker's image: one static program and nothing else. No shell, no libraries, no /etc.
#
# The build context holds `drydock-worker`, built with `-C target-feature=+crt-static`, and this file. No builder
# with extensions is needed: DOCKER_BUILDKIT=0 docker build -f worker.Dockerfile -t drydock-worker <context>
FROM scratch
COPY drydock-worker /drydock-worker
# Runs under any engine as nobody in particular; drydock names the user again when it creates a container.
USER 65532:65532
ENTRYPOINT ["/drydock-worker"]
LABEL org.opencontainers.image.title="drydock-worker" \
      org.opencontainers.image.description="Runs one attempt of a drydock job" \
      org.opencontainers.image.licenses="Apache-2.0" \
      drydock.contract="1" \
      drydock.devices="cpu"
