"""The kinds there are, and how a document finds its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeai.errors import ManifestError
from edgeai.resources.base import API_VERSION, Resource
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.model import Model
from edgeai.resources.node import EdgeNode
from edgeai.resources.refusals import quoted

KINDS: dict[str, type[Resource]] = {
    "Dataset": Dataset,
    "EdgeNode": EdgeNode,
    "FederatedTask": FederatedTask,
    "IncrementalLearningJob": IncrementalLearningJob,
    "JointInferenceService": JointInferenceService,
    "Model": Model,
}


def kind_of(document: Mapping[str, Any]) -> type[Resource]:
    """The class of a document. Raises ManifestError, naming the field, on an unknown apiVersion or kind."""
    version, kind = document.get("apiVersion"), document.get("kind")
    if version != API_VERSION:
        what = f"must be {API_VERSION}" + (f", not {quoted(version)}" if version is not None else "")
        raise ManifestError(what, field="apiVersion")
    if not isinstance(kind, str) or kind not in KINDS:
        known = "there is " + ", ".join(sorted(KINDS))
        if kind is None:
            raise ManifestError(f"this field is required; {known}", field="kind")
        raise ManifestError(f"{quoted(kind)} is not a known kind; {known}", field="kind")
    return KINDS[kind]


def from_document(document: Mapping[str, Any]) -> Resource:
    """The resource, of whatever kind, that `to_document` wrote. Raises ManifestError naming the first wrong field."""
    return kind_of(document).from_document(document)
