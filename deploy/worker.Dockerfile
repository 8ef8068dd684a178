# A Ray node that trains: no FastAPI, no torch-geometric inside. See server.Dockerfile for the build arguments.
FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ARG TORCH="torch==2.13.0"
WORKDIR /src
RUN python -m venv /opt/nowcast && /opt/nowcast/bin/pip install --no-cache-dir "${TORCH}"
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN mkdir protos nowcast_server trainer_worker && touch protos/__init__.py nowcast_server/__init__.py trainer_worker/__init__.py \
 && /opt/nowcast/bin/pip install --no-cache-dir --constraint requirements.lock ".[worker]" \
 && rm -rf build ./*.egg-info protos nowcast_server trainer_worker
COPY protos protos
COPY trainer_worker trainer_worker
RUN /opt/nowcast/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
# The task's data comes from a Debian package, fetched without root at the first run.
RUN useradd --create-home --uid 10001 nowcast && install --directory --owner nowcast /runs /home/nowcast/.cache
COPY --from=build /opt/nowcast /opt/nowcast
COPY deploy/demo.toml /home/nowcast/demo.toml
# glibc gives large blocks back to the system at once; a convnet step then spends half its time in page faults
ENV PATH=/opt/nowcast/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 \
    MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=10000000000 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/nowcast
# is the cluster this node belongs to alive, seen from here
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["ray", "health-check"]
ENTRYPOINT ["ray"]
CMD ["start", "--head", "--block"]
