"""Kubernetes' own types, strictly: an unknown field, a missing one or a wrong type is an error that names its path."""

import dataclasses
import importlib
import sys
import types
import typing
from typing import Any

# The models need three names of the client they belong to, which would bring an HTTP library and more.
_names = types.ModuleType("lightkube.core.schema")
vars(_names).update(dataclass=dataclasses.dataclass, field=dataclasses.field, DictMixin=object)
sys.modules.setdefault("lightkube.core", types.ModuleType("lightkube.core"))
sys.modules.setdefault("lightkube.core.schema", _names)

MODULES = {
    "v1": "core_v1",
    "apps/v1": "apps_v1",
    "networking.k8s.io/v1": "networking_v1",
    "policy/v1": "policy_v1",
    "batch/v1": "batch_v1",
}
QUANTITY = r"^\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?$"


class Invalid(Exception):
    """Where, and what is wrong."""


def check(document: dict[str, Any]) -> None:
    """Check a resource of Kubernetes' own.

    Raises:
        Invalid: Kubernetes would refuse it.
    """
    module = importlib.import_module(f"lightkube.models.{MODULES[document['apiVersion']]}")
    check_as(getattr(module, document["kind"]), document, document["kind"])


def check_pod_template(template: dict[str, Any], path: str) -> None:
    """Check the pod template inside another resource."""
    check_as(importlib.import_module("lightkube.models.core_v1").PodTemplateSpec, template, path)


def check_as(kind: Any, value: Any, path: str) -> None:
    """Check a value against a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        if len(kinds) > 1:
            _require(type(value) in kinds, path, " or ".join(each.__name__ for each in kinds))
        elif value is not None:
            check_as(kinds[0], value, path)
    elif dataclasses.is_dataclass(kind):
        _check_object(kind, value, path)
    elif origin is list:
        _require(isinstance(value, list), path, "a list")
        for index, each in enumerate(value):
            check_as(arguments[0], each, f"{path}[{index}]")
    elif origin is dict or kind is dict:
        _require(isinstance(value, dict), path, "a map")
        for key, each in value.items():
            check_as(arguments[1] if arguments else Any, each, f"{path}.{key}")
    elif kind in (str, int, bool):
        _require(type(value) is kind, path, kind.__name__)


def _check_object(kind: Any, value: Any, path: str) -> None:
    _require(isinstance(value, dict), path, "an object")
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    names = {each.metadata.get("json", each.name): each for each in dataclasses.fields(kind)}
    for key in value:
        _require(key in names, f"{path}.{key}", f"a field of {kind.__name__}")
        check_as(hints[names[key].name], value[key], f"{path}.{key}")
    for key, each in names.items():
        optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        _require(optional or key in value, f"{path}.{key}", "given")


def _require(fine: bool, path: str, what: str) -> None:  # noqa: FBT001 -- reads like an assertion
    if not fine:
        raise Invalid(f"{path} must be {what}")
