# The service, and behind it a job to look at. No stage of the service installs torch.
#
#   docker build -t gradwatch .                    the service
#   docker build -t gradwatch-demo --target demo . a job that trains and gets into trouble

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /build && python -m venv /venv
# Before the sources, so that a change of ours does not install everything again.
COPY service/deploy/requirements-build.txt service/deploy/requirements.txt service/deploy/
RUN /build/bin/pip install --require-hashes -r service/deploy/requirements-build.txt \
 && /venv/bin/pip install --require-hashes -r service/deploy/requirements.txt
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY client client
COPY service/gradwatch_service service/gradwatch_service
RUN /build/bin/python -m hatchling build -t wheel -d /dist \
 && /venv/bin/pip install --no-deps --no-index /dist/*.whl

FROM build AS demo-build
# The CPU build of torch, from torch's own index; the job needs no more.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /venv/bin/pip install "$TORCH" --index-url "$TORCH_INDEX" \
 && /venv/bin/pip install "urllib3>=2.2"

FROM python:3.11-slim-bookworm AS base
LABEL org.opencontainers.image.title="gradwatch" \
      org.opencontainers.image.description="Gradient statistics of PyTorch jobs: stored, diagnosed, turned into thresholds." \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The folder exists before the volume is mounted, so that a new volume belongs to this user.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin gradwatch \
 && mkdir /data && chown 10001:10001 /data
USER 10001:10001
WORKDIR /data

FROM base AS demo
COPY --from=demo-build /venv /venv
COPY service/deploy/demo/train.py /app/train.py
ENTRYPOINT ["python", "/app/train.py"]

FROM base AS service
COPY --from=build /venv /venv
VOLUME /data
EXPOSE 8642
# Liveness: answers without touching the store. Python, since the image has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8642/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["gradwatch"]
# Another address than loopback is refused without tokens: give --tokens FILE, or --insecure where
# nothing but trusted neighbours can reach the port.
CMD ["serve", "--host", "0.0.0.0", "--store", "sqlite:////data/gradwatch.db"]
