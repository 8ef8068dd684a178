# The nowcast server: no ray inside. CPU and CUDA images differ only in the torch wheel:
#   docker build -f deploy/server.Dockerfile -t nowcast-server:gpu .                                      # torch as pinned (CUDA on Linux)
#   docker build -f deploy/server.Dockerfile -t nowcast-server:cpu \
#                --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu --build-arg TORCH=torch==2.13.0+cpu .
FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ARG TORCH="torch==2.13.0"
WORKDIR /src
RUN python -m venv /opt/nowcast && /opt/nowcast/bin/pip install --no-cache-dir "${TORCH}"
COPY requirements.lock pyproject.toml README.md LICENSE ./
# the libraries first: a change of our own code does not install them again
# (what stood in for it goes: files in build/ that are newer than our own would be packed in their place)
RUN mkdir protos nowcast_server trainer_worker && touch protos/__init__.py nowcast_server/__init__.py trainer_worker/__init__.py \
 && /opt/nowcast/bin/pip install --no-cache-dir --constraint requirements.lock ".[server]" \
 && rm -rf build ./*.egg-info protos nowcast_server trainer_worker
COPY protos protos
COPY nowcast_server nowcast_server
RUN /opt/nowcast/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 nowcast
COPY --from=build /opt/nowcast /opt/nowcast
ENV PATH=/opt/nowcast/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
EXPOSE 8440
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8440/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["nowcast-server"]
CMD ["run", "--host", "0.0.0.0"]
