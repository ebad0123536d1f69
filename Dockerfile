# Two images from one set of steps, each of which `make image-NAME` takes without Docker:
#   docker build --tag sive .                        a gateway: no GPU, no torch
#   docker build --tag sive-pod --target pod .       a pod: vLLM, and sive in front of it
# The gateway is last because Render builds the last stage. BuildKit leaves out what a target does not need.

FROM scratch AS sources
COPY clients/python/sive /opt/sive/src/sive
COPY lora_adapters/sive_adapters /opt/sive/src/sive_adapters
COPY runpod/sive_pods /opt/sive/src/sive_pods
COPY serve/sive_serve /opt/sive/src/sive_serve
COPY clients/netlify/public /opt/sive/src/sive_serve/page

FROM vllm/vllm-openai:v0.32.0 AS pod
COPY serve/image/venv.sh runpod/requirements.lock /opt/sive/image/
RUN /opt/sive/image/venv.sh /opt/sive /opt/sive/image/requirements.lock
COPY serve/image lora_adapters/adapters.toml /opt/sive/image/
COPY --from=sources /opt/sive/src /opt/sive/src
RUN /opt/sive/image/finish.sh /opt/sive
ENV SIVE_DATA_DIR=/workspace
WORKDIR /workspace
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/opt/sive/bin/python3", "-I", "/opt/sive/image/health.py"]
# Instead of the base image's ["vllm", "serve"]; what follows the image's name goes to `sive serve`.
ENTRYPOINT ["/opt/sive/bin/python3", "-I", "/opt/sive/image/pod.py"]

FROM python:3.12-slim-trixie AS installed
COPY serve/image/venv.sh serve/requirements.lock /opt/sive/image/
RUN /opt/sive/image/venv.sh /opt/sive /opt/sive/image/requirements.lock
COPY serve/image /opt/sive/image/
COPY --from=sources /opt/sive/src /opt/sive/src
RUN /opt/sive/image/finish.sh /opt/sive
ARG CPU_MODEL=""
RUN /opt/sive/image/weights.sh /opt/sive /opt/sive/cache "$CPU_MODEL"

FROM python:3.12-slim-trixie AS gateway
COPY --from=installed /opt/sive /opt/sive
ENV XDG_CACHE_HOME=/opt/sive/cache HOME=/tmp
# A sive.toml mounted here is found.
WORKDIR /sive
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["/opt/sive/bin/python3", "-I", "/opt/sive/image/health.py"]
ENTRYPOINT ["/opt/sive/bin/sive", "serve", "--host", "0.0.0.0"]
