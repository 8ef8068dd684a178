"""The Serve config and the Ray launcher's cluster file."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from commands import document


@pytest.fixture(scope="module")
def serve_config() -> Any:
    """deploy/serve.yaml."""
    return document("deploy/serve.yaml")


def test_serve_accepts_the_config(serve_config: Any) -> None:
    """`serve deploy` would refuse it: a misspelt option, a wrong type."""
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config)
    (app,) = config.applications
    assert (app.name, app.deployments[0].autoscaling_config["max_replicas"]) == ("nowcast", 8)
    # Serve's models drop keys they do not know, in silence
    (written,) = serve_config["applications"]
    (options,) = written["deployments"]
    parts = [
        (ServeDeploySchema, serve_config),
        (HTTPOptionsSchema, serve_config["http_options"]),
        (ServeApplicationSchema, written),
        (DeploymentSchema, options),
        (AutoscalingConfig, options["autoscaling_config"]),
        (RequestRouterConfig, options["request_router_config"]),
    ]
    for schema, part in parts:
        assert set(part) <= set(schema.model_fields), schema.__name__


def test_what_the_config_names_exists(serve_config: Any) -> None:
    """The replicas would fail to start, far from where the mistake is."""
    from nowcast_server.serve.application import DEPLOYMENT
    from nowcast_server.settings import Settings

    (app,) = serve_config["applications"]
    (options,) = app["deployments"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert options["name"] == DEPLOYMENT
    assert Settings(**app["args"])
    module, _, name = options["autoscaling_config"]["policy"]["policy_function"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    module, _, name = options["request_router_config"]["request_router_class"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_the_config_says_what_the_command_does(serve_config: Any) -> None:
    """`serve deploy` and `nowcast-server serve-on-ray` would give servers that behave differently."""
    from nowcast_server.serve.application import ROUTER, Replicas, deployment

    (options,) = serve_config["applications"][0]["deployments"]
    assert options["autoscaling_config"] == Replicas(1, 8).options()["autoscaling_config"]
    assert options["request_router_config"] == ROUTER
    config = deployment._deployment_config
    for name in ("max_ongoing_requests", "health_check_period_s", "health_check_timeout_s", "graceful_shutdown_timeout_s"):
        assert options[name] == getattr(config, name)


def test_the_launcher_accepts_the_cluster_file() -> None:
    """`ray up` would refuse it."""
    import jsonschema
    import ray.autoscaler

    cluster = document("deploy/cloud/aws.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert set(cluster) <= set(schema["properties"])
    for name, node in cluster["available_node_types"].items():
        known = schema["properties"]["available_node_types"]["patternProperties"][".*"]["properties"]
        assert set(node) <= set(known), name
    assert cluster["head_node_type"] in cluster["available_node_types"]
