"""What a user asks for: the kinds of resources, and the manifests they are written in."""

from edgeai.resources.base import API_VERSION, Metadata, Resource, instant
from edgeai.resources.conditions import Condition, ConditionStatus, ConditionType, find_condition, set_condition
from edgeai.resources.dataset import Column, Dataset, DatasetFormat, DatasetSpec, DatasetStatus
from edgeai.resources.federated import (
    AggregationAlgorithm,
    AggregationWorker,
    FederatedTask,
    FederatedTaskSpec,
    FederatedTaskStatus,
    FinishedModel,
    RoundRecord,
    TaskPhase,
    TrainingWorker,
    WorkerStatus,
)
from edgeai.resources.kinds import KINDS, from_document, kind_of
from edgeai.resources.manifest import dump_manifests, load_manifests, read_manifests
from edgeai.resources.model import Model, ModelFormat, ModelSpec, ModelStatus, ModelVersion
from edgeai.resources.names import NAME, NAME_RULE, Name, checked_name
from edgeai.resources.node import EdgeNode, EdgeNodeSpec, EdgeNodeStatus
from edgeai.resources.parameters import KNOWN_KEYS, KnownKey, Parameter, RoundRules
from edgeai.resources.schema import crd, json_schema

__all__ = [
    "API_VERSION",
    "KINDS",
    "KNOWN_KEYS",
    "NAME",
    "NAME_RULE",
    "AggregationAlgorithm",
    "AggregationWorker",
    "Column",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "Dataset",
    "DatasetFormat",
    "DatasetSpec",
    "DatasetStatus",
    "EdgeNode",
    "EdgeNodeSpec",
    "EdgeNodeStatus",
    "FederatedTask",
    "FederatedTaskSpec",
    "FederatedTaskStatus",
    "FinishedModel",
    "KnownKey",
    "Metadata",
    "Model",
    "ModelFormat",
    "ModelSpec",
    "ModelStatus",
    "ModelVersion",
    "Name",
    "Parameter",
    "Resource",
    "RoundRecord",
    "RoundRules",
    "TaskPhase",
    "TrainingWorker",
    "WorkerStatus",
    "checked_name",
    "crd",
    "dump_manifests",
    "find_condition",
    "from_document",
    "instant",
    "json_schema",
    "kind_of",
    "load_manifests",
    "read_manifests",
    "set_condition",
]
