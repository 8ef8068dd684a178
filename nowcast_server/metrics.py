"""Prometheus metrics, on a registry of each app's own. No label names a job or a tenant: other tenants must not see them."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_SKILLS = (-1.0, -0.3, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="nowcast", registry=self.registry)
        gauge = partial(Gauge, namespace="nowcast", registry=self.registry)
        histogram = partial(Histogram, namespace="nowcast", registry=self.registry, buckets=_SECONDS)
        self.uploads = counter("uploads", "Snapshots by outcome: stored, replayed (already held), or an error code", ["outcome"])
        self.upload_bytes = counter("upload_bytes", "Bytes of snapshot bodies received")
        self.upload_seconds = histogram("upload_seconds", "Time to take in a snapshot, also one that was held already")
        self.forecasts = counter("forecasts", "Nowcasts made, gone (the client left), or an error code", ["forecaster", "outcome"])
        self.forecast_seconds = histogram("forecast_seconds", "Time to make a forecast on the device", ["forecaster"])
        self.queue_seconds = histogram("queue_seconds", "Time that a forecast waited for the device")
        self.queue_depth = gauge("queue_depth", "Forecasts waiting for the device")
        about_skill = "Skill of forecasts, scored once the future has come: 1 is perfect, 0 as good as no change"
        self.skill = histogram("skill", about_skill, ["forecaster"], buckets=_SKILLS)
        self.jobs = gauge("jobs", "Jobs known to the server")
        self.jobs_expired = counter("jobs_expired", "Jobs forgotten because no client called")
        self.memory_bytes = gauge("memory_bytes", "Bytes reserved for histories, forecasts, and on the device", ["use"])
        self.device_uploads = gauge("device_uploads", "Snapshots uploaded to the device since the start")
        self.device_info = gauge("device_info", "Always 1; where forecasts are made, and what was asked for", ["device", "asked"])
        self.memory_limit_bytes = gauge("memory_limit_bytes", "Bytes that may be reserved", ["use"])
        self.evictions = counter("evictions", "Histories evicted to make room; their workers send them again")
        self.errors = counter("errors", "Calls answered with an error, by code", ["code"])
        self.ready = gauge("ready", "1 while /readyz says yes")
