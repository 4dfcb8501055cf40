"""JSON Schemas of what the API takes and gives beside the resources themselves; `openapi` puts them into the document.

Written by hand where the views are dictionaries; the resources come from the pydantic models.
"""

from __future__ import annotations

from typing import Any

from edgeai.portal.audit import Line
from edgeai.portal.inferring import COLUMNS
from edgeai.portal.live import TASK_KINDS
from edgeai.resources.kinds import KINDS
from edgeai.resources.names import NAME
from edgeai.resources.snapshots import DatasetUse
from edgeai.resources.versions import VersionState

Schema = dict[str, Any]

NAME_SCHEMA: Schema = {"type": "string", "pattern": f"^{NAME.pattern}$", "minLength": 1, "maxLength": 50}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
METRICS: Schema = {"type": "object", "additionalProperties": {"type": "number"}}
ANYTHING: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def record(**fields: Schema) -> Schema:
    """An object that has all of these and nothing else."""
    return {"type": "object", "properties": fields, "required": sorted(fields), "additionalProperties": False}


LIVE = record(known=FLAG, age_s=maybe({"type": "number", "minimum": 0}), reason=TEXT)
_WORKER_PART = record(
    worker=TEXT, state=TEXT, at=maybe(NUMBER), seconds=maybe(NUMBER), examples=maybe(COUNT), reason=TEXT
)
_CHANGE = record(
    at=NUMBER,
    worker=TEXT,
    what=TEXT,
    before=TEXT,
    after=TEXT,
    version_before=COUNT,
    version=COUNT,
    reason=TEXT,
    times=COUNT,
)
_CURVE = record(
    workers=many(TEXT),
    edge=TEXT,
    cloud=TEXT,
    mining=TEXT,
    axis=TEXT,
    inferences=COUNT,
    answers=COUNT,
    changed=COUNT,
    apart=COUNT,
    threshold=maybe(NUMBER),
    budget=NUMBER,
    says=many(TEXT),
    points=many(record(threshold=NUMBER, sent=NUMBER, changed=maybe(NUMBER), answers=COUNT)),
)
_MISSED = record(at=NUMBER, attempt=COUNT, reason=TEXT)
_ROUND = record(
    round=COUNT,
    attempt=COUNT,
    state={"enum": ["open", "closed", "ended"]},
    started_at=maybe(NUMBER),
    closed_at=maybe(NUMBER),
    seconds=maybe(NUMBER),
    bytes_up=COUNT,
    bytes_down=COUNT,
    updates=COUNT,
    model_digest=TEXT,
    submitted=METRICS,
    validated=METRICS,
    missed=many(_MISSED),
    detail=FLAG,
    workers=many(_WORKER_PART),
)
_PROGRESS = record(step=TEXT, round=COUNT, at=maybe(NUMBER), done=COUNT, total=COUNT)
_WORKER_LINE = record(
    worker=TEXT,
    role=TEXT,
    joined_at=maybe(NUMBER),
    started_at=maybe(NUMBER),
    starts=COUNT,
    ended_at=maybe(NUMBER),
    ok=maybe(FLAG),
    reason=TEXT,
    progress=_PROGRESS,
)
_SERIES: Schema = {"type": "object", "additionalProperties": many(maybe(NUMBER))}
_PLOTS = record(
    x=many(COUNT),
    submitted=_SERIES,
    validated=_SERIES,
    seconds=many(maybe(NUMBER)),
    bytes_up=many(COUNT),
    bytes_down=many(COUNT),
    updates=many(COUNT),
)
_ACTION: Schema = {"enum": ["created", "configured", "unchanged"]}
_WRITTEN = record(kind=TEXT, name=TEXT, action=_ACTION, generation=COUNT, resource_version=TEXT)
_VERSION_STATE = record(
    version=COUNT, state={"enum": [state.value for state in VersionState]}, by=many(record(kind=TEXT, name=TEXT))
)
_ROLE: Schema = {"enum": ["viewer", "operator", "admin"]}
_TOKEN = record(name=TEXT, role=_ROLE, created=NUMBER)
_EVENT = record(sequence=COUNT, time=NUMBER, node=TEXT, worker=TEXT, kind=TEXT, body=ANYTHING, trace=TEXT)
_COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}

_COMMON: dict[str, Schema] = {
    "kind": TEXT,
    "name": TEXT,
    "uid": TEXT,
    "generation": COUNT,
    "resource_version": TEXT,
    "created": maybe(TEXT),
    "labels": {"type": "object", "additionalProperties": TEXT},
    "live": ref("Live"),
    "conditions": many(ANYTHING),
    "needs": TEXT,
}
_TASK_SUMMARY = record(
    **_COMMON,
    phase=TEXT,
    observed_generation=COUNT,
    paused=FLAG,
    deleting=FLAG,
    round=COUNT,
    stage=TEXT,
    rounds={},
    metrics=METRICS,
    model=maybe(ANYTHING),
    nodes=many(TEXT),
    workers=_COUNTS,
    collecting=maybe(record(round=COUNT, done=COUNT, total=COUNT)),
)
_BROKER = record(known=FLAG, age_s=maybe(NUMBER), answers=maybe(FLAG), round_trip_s=maybe(NUMBER))
_LANE = record(
    forwarded=COUNT,
    forwarded_bytes=COUNT,
    dropped_away=COUNT,
    dropped_refused=COUNT,
    dropped_full=COUNT,
    waiting=COUNT,
    forwarded_per_s=maybe(NUMBER),
)
_BRIDGE = record(
    known=FLAG,
    age_s=maybe(NUMBER),
    reason=TEXT,
    lives=maybe(FLAG),
    uptime_s=maybe(NUMBER),
    edge_connected=maybe(FLAG),
    edge_reconnects=maybe(COUNT),
    cloud_reconnects=maybe(COUNT),
    dropping_s=maybe(NUMBER),
    up=maybe(_LANE),
    down=maybe(_LANE),
)
_HEALTH = record(broker=_BROKER, bridge=maybe(_BRIDGE), waiting=maybe(COUNT), attention=many(TEXT))
_CLOUD = record(
    bus=record(answers=maybe(FLAG), round_trip_s=maybe(NUMBER)),
    coordinator=record(
        broker=_BROKER,
        waiting=maybe(COUNT),
        store_bytes=maybe(COUNT),
        store_limit_bytes=maybe(COUNT),
        attention=many(TEXT),
    ),
    versions={"type": "object", "additionalProperties": TEXT},
)
_NODE_SUMMARY = record(
    **_COMMON,
    state={"enum": ["ready", "silent", "gone", "unknown"]},
    last_seen=maybe(TEXT),
    heard_age_s=maybe(NUMBER),
    address=TEXT,
    versions={"type": "object", "additionalProperties": TEXT},
    uptime_s=maybe(NUMBER),
    outbox=maybe(COUNT),
    clock_skew_s=maybe(NUMBER),
    health=_HEALTH,
    datasets=many(TEXT),
    workers=many(ANYTHING),
)
_DATASET_SUMMARY = record(
    **_COMMON,
    node=TEXT,
    url=TEXT,
    format=TEXT,
    samples=maybe(COUNT),
    size_bytes=maybe(COUNT),
    digest=maybe(TEXT),
    schema=many(ANYTHING),
)
_MODEL_SUMMARY = record(**_COMMON, versions=COUNT, newest=maybe(ANYTHING))
_OWN_SUMMARIES = {"Dataset": _DATASET_SUMMARY, "EdgeNode": _NODE_SUMMARY, "Model": _MODEL_SUMMARY}


def summary_of(kind: str) -> Schema:
    return _TASK_SUMMARY if kind in TASK_KINDS else _OWN_SUMMARIES.get(kind, record(**_COMMON))


def page_of(kind: str) -> Schema:
    metadata = {
        **record(sequence=COUNT, total=COUNT, live=ref("Live")),
        "properties": {"sequence": COUNT, "total": COUNT, "live": ref("Live"), "continue": TEXT},
    }
    items: Schema = {"anyOf": [many(ref(kind)), many(ref(f"{kind}Summary"))]}
    return record(items=items, metadata=metadata)


COMPONENTS: dict[str, Schema] = {
    "Live": LIVE,
    "Problem": {
        "type": "object",
        "description": "A refusal (RFC 9457): `detail` is one sentence, `errors` point at lines and fields of what was posted.",
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "errors": many(
                {
                    "type": "object",
                    "properties": {"line": COUNT, "field": TEXT, "detail": TEXT},
                    "required": ["detail"],
                    "additionalProperties": False,
                }
            ),
        },
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
    },
    "Overview": record(
        as_of=NUMBER,
        sequence=COUNT,
        live=ref("Live"),
        coordinator=ref("Live"),
        history_loaded=FLAG,
        nodes=_COUNTS,
        tasks=_COUNTS,
        datasets=COUNT,
        models=COUNT,
        cloud=_CLOUD,
        throughput=record(facts_per_s=NUMBER, signals_per_s=NUMBER, rounds_per_s=NUMBER, bytes_per_s=NUMBER),
        attention=many(record(kind=TEXT, name=TEXT, sentence=TEXT, live=ref("Live"))),
        attention_total=COUNT,
    ),
    "Timeline": record(
        task=_TASK_SUMMARY,
        history_loaded=FLAG,
        events=COUNT,
        first_sequence=COUNT,
        last_sequence=COUNT,
        first_at=maybe(NUMBER),
        last_at=maybe(NUMBER),
        phases=many(record(at=NUMBER, phase=TEXT, reason=TEXT)),
        changes=many(_CHANGE),
        rounds=many(_ROUND),
        workers=many(_WORKER_LINE),
        plots=_PLOTS,
    ),
    "Inference": record(
        history=record(since=NUMBER, step_s=NUMBER, at=many(NUMBER), **{name: many(maybe(NUMBER)) for name in COLUMNS}),
        curves=many(_CURVE),
    ),
    "Events": record(items=many(_EVENT), next=maybe(COUNT)),
    "Log": record(offset=COUNT, next_offset=COUNT, text=TEXT, ended=FLAG),
    "Applied": record(items=many(_WRITTEN), dry_run=FLAG),
    "Written": _WRITTEN,
    "ModelVersions": record(items=many(ref("ModelVersion")), states=many(_VERSION_STATE)),
    "DatasetUse": DatasetUse.model_json_schema(by_alias=True),
    "DatasetSnapshots": record(items=many(ref("DatasetUse")), total=COUNT),
    "Rollback": record(version={"type": "integer", "minimum": 1, "maximum": 2**31}),
    "Patch": {
        "type": "object",
        "description": "A merge patch (RFC 7396) of the spec, the labels and the annotations: null removes.",
        "properties": {
            "spec": ANYTHING,
            "metadata": {
                "type": "object",
                "properties": {"labels": ANYTHING, "annotations": ANYTHING},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    },
    "Me": record(name=TEXT, role=_ROLE, csrf_token=TEXT),
    "NewToken": record(name=NAME_SCHEMA, role=_ROLE),
    "IssuedToken": record(name=TEXT, role=_ROLE, token=TEXT),
    "Tokens": record(items=many(_TOKEN)),
    "Audit": record(items=many({"type": "object", "properties": {name: {} for name in Line.__dataclass_fields__}})),
    **{f"{kind}Summary": summary_of(kind) for kind in KINDS},
    **{f"{kind}Page": page_of(kind) for kind in KINDS},
}
