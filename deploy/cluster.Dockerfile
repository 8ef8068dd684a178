# A Ray node that does both: trains, and serves nowcasts from Ray Serve replicas. See server.Dockerfile for the build arguments.
FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ARG TORCH="torch==2.13.0"
WORKDIR /src
RUN python -m venv /opt/nowcast && /opt/nowcast/bin/pip install --no-cache-dir "${TORCH}"
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN mkdir protos nowcast_server trainer_worker && touch protos/__init__.py nowcast_server/__init__.py trainer_worker/__init__.py \
 && /opt/nowcast/bin/pip install --no-cache-dir --constraint requirements.lock ".[server,worker]" "ray[serve]" "boto3==1.*" \
 && rm -rf build ./*.egg-info protos nowcast_server trainer_worker
COPY protos protos
COPY nowcast_server nowcast_server
COPY trainer_worker trainer_worker
RUN /opt/nowcast/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
# wget: KubeRay's probes of a Ray node call it. rsync and ssh, and boto3 above: with them `ray up`'s head starts the other nodes.
# The profile: the launcher's login shells would have Debian's PATH.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget=1.* rsync=3.* openssh-client=1:* \
 && rm -rf /var/lib/apt/lists/* \
 && echo "PATH=/opt/nowcast/bin:\$PATH" > /etc/profile.d/nowcast.sh \
 && useradd --create-home --uid 10001 nowcast && install --directory --owner nowcast /runs /home/nowcast/.cache
COPY --from=build /opt/nowcast /opt/nowcast
COPY deploy/demo.toml deploy/serve.yaml /home/nowcast/
# the proxy misses Serve's own limits (5 s, 10 s) on a machine with every core taken, and is killed for it
ENV PATH=/opt/nowcast/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 \
    MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=10000000000 \
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60 RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=60 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/nowcast
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["ray", "health-check"]
# no ENTRYPOINT: the launcher runs the image with `bash`
CMD ["ray", "start", "--head", "--block"]
