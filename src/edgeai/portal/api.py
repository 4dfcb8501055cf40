"""The REST API under /api/v1: the table of operations, and what each does.

Reads come from the read model, writes go to the store and return when the read model has seen them, so that a reader finds what
it has just written. A manifest that is refused is answered with its line and field; a version that is not the newest any more
with 409. The document at /api/v1/openapi.json is made from this table.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from math import isfinite
from typing import Any

from starlette.responses import Response

from edgeai.client import Applied, Task
from edgeai.errors import MalformedEvent, ManifestError
from edgeai.events.envelope import body_of, decode
from edgeai.portal import downloads, labels, openapi, origins, schemas, views, writing
from edgeai.portal.access import Role
from edgeai.portal.downloads import version_of
from edgeai.portal.feed import Key
from edgeai.portal.live import OVERVIEW, TASK_KINDS, TIMELINE, Entry
from edgeai.portal.operations import Answer, Call, Operation, Parameter, Place, Schema, read_body
from edgeai.portal.problems import Problem
from edgeai.portal.schemas import NAME_SCHEMA, ref
from edgeai.portal.streams import Rendered, Stream, opened, to_json
from edgeai.portal.writing import Expected
from edgeai.resources.kinds import KINDS, from_document
from edgeai.resources.manifest import MAX_DEPTH, dump_manifests
from edgeai.resources.model import Model
from edgeai.resources.names import NAME as NAME_PATTERN

PREFIX = "/api/v1"
JSON, YAML, SSE = "application/json", "application/yaml", "text/event-stream"
MERGE_PATCH = "application/merge-patch+json"
DEFAULT_LIMIT, MOST = 100, 500
LOG_TAIL_BYTES = 64 * 1024
_BIGGEST = 10**15
_JOB, _SERVICE = "IncrementalLearningJob", "JointInferenceService"
PAUSABLE = tuple(kind for kind in TASK_KINDS if kind != _SERVICE)

# --- parameters

_KIND, _TASK_KIND = "|".join(sorted(KINDS)), "|".join(TASK_KINDS)
_TOPIC = f"({OVERVIEW}|({_KIND})(:{NAME_PATTERN.pattern})?|{TIMELINE}:({_TASK_KIND})/{NAME_PATTERN.pattern})"
_TOPICS = f"^({_TOPIC}(,{_TOPIC})*)?$"
NAME = Parameter("name", Place.PATH, NAME_SCHEMA, "Name of the resource.")
WORKER = Parameter("worker", Place.PATH, NAME_SCHEMA, "Name of the worker.")
TOKEN_NAME = Parameter("name", Place.PATH, NAME_SCHEMA, "Name of the token.")
VERSION = Parameter(
    "version", Place.PATH, {"type": "integer", "minimum": 1, "maximum": 2**31}, "Number of the version."
)
LIMIT = Parameter(
    "limit", Place.QUERY, {"type": "integer", "minimum": 1, "maximum": MOST}, "At most so many items.", DEFAULT_LIMIT
)
CONTINUE = Parameter(
    "continue",
    Place.QUERY,
    {"type": "string", "pattern": "^([0-9a-f]{2}){1,50}$", "maxLength": 100},
    "`metadata.continue` of the page before.",
)
LABELS = Parameter(
    "labelSelector",
    Place.QUERY,
    {"type": "string", "maxLength": 1000, "pattern": labels.PATTERN},
    "`key=value`, `key!=value`, `key`, `!key`, separated by commas: all must hold.",
    "",
)
SEARCH = Parameter("search", Place.QUERY, {"type": "string", "maxLength": 50}, "Only names that contain this.", "")
VIEW = Parameter(
    "view",
    Place.QUERY,
    {"type": "string", "enum": ["resource", "summary"]},
    "`resource`: as stored; `summary`: one small line each, as the pages show them.",
    "resource",
)
SINCE = Parameter(
    "since",
    Place.QUERY,
    {"type": "integer", "minimum": 0, "maximum": 10**17},
    "Only changes after this sequence number.",
)
LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    Place.HEADER,
    {"type": "string", "pattern": "^[0-9]{1,17}$", "maxLength": 17},
    "As `since`; browsers send it when they connect again.",
)
IF_MATCH = Parameter(
    "If-Match",
    Place.HEADER,
    {"type": "string", "pattern": '^"?[0-9]{1,18}"?$', "maxLength": 20},
    "The quoted `metadata.resourceVersion` that this is about; 409 if there is another.",
)
GENERATION = Parameter(
    "generation",
    Place.QUERY,
    {"type": "integer", "minimum": 1, "maximum": _BIGGEST},
    "The `metadata.generation` that this is about; 409 if there is another.",
)
DRY_RUN = Parameter("dryRun", Place.QUERY, {"type": "boolean"}, "Only say what would be done.", False)
AFTER = Parameter(
    "after",
    Place.QUERY,
    {"type": "integer", "minimum": 0, "maximum": _BIGGEST},
    "Only events after this sequence number.",
    0,
)
OFFSET = Parameter(
    "offset",
    Place.QUERY,
    {"type": "integer", "minimum": -(2**24), "maximum": _BIGGEST},
    "From this byte on; negative: so many bytes from the end.",
    -LOG_TAIL_BYTES,
)
KIND = Parameter("kind", Place.QUERY, {"type": "string", "enum": sorted(KINDS)}, "Only this kind.")
WATCHED_NAME = Parameter("name", Place.QUERY, NAME_SCHEMA, "Only the resource of this name.")
TOPICS = Parameter(
    "topics",
    Place.QUERY,
    {"type": "string", "maxLength": 2000, "pattern": _TOPICS},
    f"What the page shows, separated by commas: {OVERVIEW}, <kind>, <kind>:<name> or {TIMELINE}:<kind>/<name>; "
    "everything if left out.",
    "",
)
BRIEF = Parameter(
    "brief",
    Place.QUERY,
    {"type": "boolean"},
    "Only say what has changed; what it looks like now only of the overview.",
    False,
)


def plural(kind: str) -> str:
    return f"{kind.lower()}s"


# --- resources


async def list_resources(call: Call, kind: str) -> Response:
    wanted = views.Wanted(
        limit=call["limit"],
        after=bytes.fromhex(call["continue"] or "").decode("latin-1"),
        selector=labels.Selector.parse(call["labelSelector"]),
        search=call["search"],
        full=call["view"] == "resource",
    )
    return _json(views.page(call.portal.live, kind, wanted))


async def get_resource(call: Call, kind: str) -> Response:
    entry = call.portal.live.entry(kind, call["name"])
    return _json(views.resource(call.portal.live, entry), headers={"ETag": f'"{entry.revision}"'})


async def get_summary(call: Call, kind: str) -> Response:
    return _json(views.summary(call.portal.live, call.portal.live.entry(kind, call["name"])))


async def get_manifest(call: Call, kind: str) -> Response:
    entry = call.portal.live.entry(kind, call["name"])
    return Response(await asyncio.to_thread(manifest_of, entry), media_type=YAML)


def manifest_of(entry: Entry) -> str:
    """As applied: what a user may edit and apply again. The generation in it notices a conflict. Slow for many workers."""
    document = entry.document()
    metadata = document["metadata"]
    notes = metadata.get("annotations") or {}
    kept = {
        "name": metadata["name"],
        "generation": metadata.get("generation"),
        "annotations": {key: value for key, value in notes.items() if not key.startswith(writing.RESERVED)},
        "labels": metadata.get("labels"),
    }
    shown = {
        "apiVersion": document["apiVersion"],
        "kind": entry.kind,
        "metadata": {key: value for key, value in kept.items() if value},
        "spec": document.get("spec", {}),
    }
    return dump_manifests([shown])


async def apply(call: Call) -> Response:
    _, text = await read_body(call.request, call.portal.settings.max_body_bytes, APPLY_BODY)
    # Parsing a large manifest takes a while: not on the loop.
    resources = await asyncio.to_thread(writing.read, text)
    dry = call["dryRun"]
    done = await writing.apply(call.portal.live.cloud, text, resources, dry=dry)
    if not dry:
        for item in done:
            await call.portal.live.reached(item.resource.kind, item.resource.name, item.revision)
    return _json({"items": [_written(item) for item in done], "dry_run": dry})


async def patch_resource(call: Call, kind: str) -> Response:
    change = await _json_body(call, PATCH_BODY)
    _check_patch(change)
    applied = await writing.patch(call.portal.live.cloud, kind, call["name"], change, _expected(call))
    await call.portal.live.reached(kind, call["name"], applied.revision)
    return _json(_written(applied))


def _check_patch(change: Any) -> None:
    if not isinstance(change, dict) or change.keys() - {"spec", "metadata"}:
        raise ManifestError("a patch is a map with spec, metadata or both", file="patch")
    metadata = change.get("metadata", {})
    if not isinstance(metadata, dict) or metadata.keys() - {"labels", "annotations"}:
        raise ManifestError("of the metadata, labels and annotations can be patched", file="patch", field="metadata")
    parts = {"spec": change.get("spec", {}), **{f"metadata.{name}": value for name, value in metadata.items()}}
    for field, value in parts.items():
        if not isinstance(value, dict):
            raise ManifestError("must be a map of fields", file="patch", field=field)


async def delete_resource(call: Call, kind: str) -> Response:
    name, cloud = call["name"], call.portal.live.cloud
    entry = call.portal.live.entry(kind, name)
    await cloud.delete(kind, name, check=_expected(call).check(kind, name))
    await call.portal.live.vanished(kind, name, entry.uid)
    return Response(status_code=204)


async def pause_task(call: Call, kind: str) -> Response:
    return await _set_paused(call, kind, True)


async def resume_task(call: Call, kind: str) -> Response:
    return await _set_paused(call, kind, False)


async def _set_paused(call: Call, kind: str, paused: bool) -> Response:
    name, live = call["name"], call.portal.live
    await live.cloud.set_paused(name, paused, kind=kind, check=_expected(call).check(kind, name))
    stored = await live.cloud.resources.get(kind, name)
    await live.reached(kind, name, stored.revision)
    return _json(views.resource(live, live.entry(kind, name)))


async def trigger_job(call: Call, kind: str) -> Response:
    name, live = call["name"], call.portal.live
    await live.cloud.trigger(name)
    stored = await live.cloud.resources.get(kind, name)
    await live.reached(kind, name, stored.revision)
    return _json(views.resource(live, live.entry(kind, name)))


# --- tasks


async def get_timeline(call: Call, kind: str) -> Response:
    return _json(views.timeline(call.portal.live, call.portal.live.entry(kind, call["name"])))


async def get_inference(call: Call, kind: str) -> Response:
    return _json(views.inference(call.portal.live, call.portal.live.entry(kind, call["name"])))


async def list_events(call: Call, kind: str) -> Response:
    """From the history itself, so none is missing that the history still has."""
    entry, limit = call.portal.live.entry(kind, call["name"]), call["limit"]
    items: list[dict[str, Any]] = []
    records = call.portal.live.cloud.facts.read(entry.level, after_sequence=call["after"])
    more = False
    async for record in records:
        if len(items) == limit:
            more = True
            break
        try:
            envelope = decode(record.payload)
        except MalformedEvent:
            continue
        items.append(
            {
                "sequence": record.sequence,
                "time": envelope.time,
                "node": record.address.node,
                "worker": record.address.worker,
                "kind": envelope.event.kind,
                "body": _plain(body_of(envelope.event)),
                "trace": envelope.trace,
            }
        )
    await records.aclose()  # type: ignore[attr-defined]
    return _json({"items": items, "next": items[-1]["sequence"] if more and items else None})


async def get_log(call: Call, kind: str) -> Response:
    entry = call.portal.live.entry(kind, call["name"])
    task = from_document(entry.document())
    assert isinstance(task, Task)
    async with call.portal.log_requests.held():
        answer = await call.portal.live.cloud.log(task, call["worker"], offset=call["offset"])
    text, taken = _whole_characters(answer.text, ended=answer.ended)
    return _json(
        {"offset": answer.offset, "next_offset": answer.offset + taken, "text": text, "ended": answer.ended},
    )


def _whole_characters(data: bytes, *, ended: bool) -> tuple[str, int]:
    """Text, and how many bytes it stands for: a character that is cut at the end comes with the next part."""
    cut = 0
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        cut = back if length > back else 0
        break
    if ended or cut == len(data):
        cut = 0
    kept = data[: len(data) - cut]
    return kept.decode(errors="replace"), len(kept)


# --- models


async def list_versions(call: Call) -> Response:
    entry = call.portal.live.entry("Model", call["name"])
    model = _model(call)
    items = [version.model_dump(mode="json", by_alias=True) for version in model.status.versions]
    return _json({"items": items, "states": origins.states(call.portal.live, entry.name, entry.document())})


async def list_snapshots(call: Call) -> Response:
    live = call.portal.live
    return _json(await origins.snapshots(live, live.entry("Dataset", call["name"]).name))


async def download_version(call: Call) -> Response:
    model = _model(call)
    return await downloads.download(call.portal, model, version_of(model, call["version"]))


async def roll_back(call: Call) -> Response:
    body = await _json_body(call, ROLLBACK_BODY)
    version = body.get("version") if isinstance(body, dict) and body.keys() == {"version"} else None
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= 2**31:
        raise ManifestError("say which version: a whole number from 1", file="rollback", field="version")
    live, name = call.portal.live, call["name"]
    await live.cloud.rollback(name, version)
    stored = await live.cloud.resources.get("Model", name)
    await live.reached("Model", name, stored.revision)
    return _json(views.resource(live, live.entry("Model", name)))


def _model(call: Call) -> Model:
    return Model.from_document(call.portal.live.entry("Model", call["name"]).document())


# --- streams, the whole


async def watch(call: Call) -> Response:
    kind, name = call["kind"], call["name"]

    def wanted(key: Key) -> bool:
        return key.topic in KINDS and (kind is None or key.topic == kind) and (name is None or key.name == name)

    return opened(_stream(call, wanted, full=True))


async def follow(call: Call) -> Response:
    topics: dict[str, set[str] | None] = {}
    for topic in filter(None, call["topics"].split(",")):
        head, _, name = topic.partition(":")
        names = topics.setdefault(head, set())
        if name and names is not None:
            names.add(name)
        else:  # all of them, whatever names are said beside it
            topics[head] = None

    def wanted(key: Key) -> bool:
        if not topics:
            return key.topic != TIMELINE
        names = topics.get(key.topic, set())
        return names is None or key.name in names

    return opened(replace(_stream(call, wanted, full=False), brief=call["brief"]))


def _stream(call: Call, wanted: Any, *, full: bool) -> Stream:
    portal, request, cookie = call.portal, call.request, call.identity.cookie
    token = request.headers.get("authorization", "").partition(" ")[2].strip()

    def still_allowed() -> bool:
        found = portal.access.session(cookie) if cookie else portal.access.bearer(token)
        return found is not None and found.role >= Role.VIEWER

    rendered: Rendered = request.app.state.rendered
    return Stream(portal, rendered, wanted, full, _place(call), still_allowed)


def _place(call: Call) -> int | None:
    """Where a reader wants to go on: what its browser remembers stands over what its address says."""
    last = call["Last-Event-ID"]
    return call["since"] if last is None else int(last)


async def get_overview(call: Call) -> Response:
    return _json(views.overview(call.portal.live))


async def get_openapi(call: Call) -> Response:
    return Response(await asyncio.to_thread(_openapi), media_type=JSON)


@cache
def _openapi() -> str:
    return to_json(openapi.document(OPERATIONS))


async def get_me(call: Call) -> Response:
    who = call.identity
    return _json({"name": who.name, "role": who.role.word, "csrf_token": who.csrf_token})


# --- for administrators


async def list_tokens(call: Call) -> Response:
    grants = await asyncio.to_thread(call.portal.access.tokens)
    found = [{"name": grant.name, "role": grant.role, "created": grant.created} for grant in grants]
    return _json({"items": found})


async def create_token(call: Call) -> Response:
    body = await _json_body(call, NEW_TOKEN_BODY)
    if (
        not isinstance(body, dict)
        or body.keys() != {"name", "role"}
        or not all(isinstance(v, str) for v in body.values())
    ):
        raise ManifestError("a token has a name and a role", file="token")
    if body["role"] not in ("viewer", "operator", "admin"):
        raise ManifestError("there is viewer, operator and admin", file="token", field="role")
    try:
        token = await asyncio.to_thread(call.portal.access.create_token, body["name"], Role.named(body["role"]))
    except ValueError as error:
        raise ManifestError(str(error), file="token", field="name") from error
    return _json({"name": body["name"], "role": body["role"], "token": token}, status=201)


async def revoke_token(call: Call) -> Response:
    await asyncio.to_thread(call.portal.access.revoke_token, call["name"])
    return Response(status_code=204)


async def list_audit(call: Call) -> Response:
    return _json({"items": await call.portal.audit.newest(call["limit"])})


# --- what they share


def _expected(call: Call) -> Expected:
    given = call["If-Match"]
    return Expected(call["generation"], given.strip('"') if given else None)


def _written(applied: Applied) -> dict[str, Any]:
    resource = applied.resource
    return {
        "kind": resource.kind,
        "name": resource.name,
        "action": applied.action.value,
        "generation": resource.metadata.generation,
        "resource_version": str(applied.revision),
    }


async def _json_body(call: Call, media_types: Mapping[str, Schema]) -> Any:
    _, text = await read_body(call.request, call.portal.settings.max_body_bytes, media_types)
    try:
        body = json.loads(text, parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not JSON") from error
    if _depth(body) > MAX_DEPTH:
        raise ManifestError(f"nested deeper than {MAX_DEPTH} levels", file="body")
    return body


def _depth(value: Any) -> int:
    level, inside = 0, [value]
    while inside := [item for item in inside if isinstance(item, dict | list)]:
        level += 1
        inside = [inner for item in inside for inner in (item.values() if isinstance(item, dict) else item)]
    return level


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _json(document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(document), status, dict(headers or {}), JSON)


def _plain(value: Any) -> Any:
    """Plain JSON of an event's body; what JSON does not know (NaN, bytes) becomes null."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not isfinite(value):
            return None
        case bytes():
            return None
    return value


# --- the table

APPLY_BODY: Mapping[str, Schema] = {YAML: ref("Manifest"), JSON: ref("Manifest")}
PATCH_BODY: Mapping[str, Schema] = {MERGE_PATCH: ref("Patch")}
ROLLBACK_BODY: Mapping[str, Schema] = {JSON: ref("Rollback")}
NEW_TOKEN_BODY: Mapping[str, Schema] = {JSON: ref("NewToken")}


def _of_kind(kind: str) -> list[Operation]:
    path, one = f"{PREFIX}/{plural(kind)}", f"{PREFIX}/{plural(kind)}/{{name}}"
    bound = partial(partial, kind=kind)
    resource, summary = Answer(f"The {kind}.", {JSON: ref(kind)}), Answer("One line.", {JSON: ref(f"{kind}Summary")})
    change = (NAME, GENERATION, IF_MATCH)
    found = [
        Operation(
            "GET",
            path,
            f"list{kind}s",
            f"List resources of kind {kind}, by name.",
            bound(list_resources),
            Answer("A page of them.", {JSON: ref(f"{kind}Page")}),
            parameters=(LIMIT, CONTINUE, LABELS, SEARCH, VIEW),
        ),
        Operation("GET", one, f"get{kind}", f"Read one {kind}.", bound(get_resource), resource, parameters=(NAME,)),
        Operation(
            "GET",
            f"{one}/summary",
            f"get{kind}Summary",
            "What a list shows of it.",
            bound(get_summary),
            summary,
            parameters=(NAME,),
        ),
        Operation(
            "GET",
            f"{one}/manifest",
            f"get{kind}Manifest",
            "The manifest as applied, to edit and apply again.",
            bound(get_manifest),
            Answer("YAML.", {YAML: ref(f"{kind}Input")}),
            parameters=(NAME,),
        ),
        Operation(
            "PATCH",
            one,
            f"patch{kind}",
            "Merge a patch into spec, labels and annotations.",
            bound(patch_resource),
            Answer("What was done.", {JSON: ref("Written")}),
            Role.OPERATOR,
            change,
            PATCH_BODY,
            action="patch",
            refusals=(409,),
        ),
        Operation(
            "DELETE",
            one,
            f"delete{kind}",
            "Delete it; a task is gone when its workers are." if kind in TASK_KINDS else "Delete it.",
            bound(delete_resource),
            Answer("It is gone, or marked to go.", status=204),
            Role.OPERATOR,
            change,
            action="delete",
            refusals=(409,),
        ),
    ]
    return found + (_of_task(kind, one, bound) if kind in TASK_KINDS else [])


def _of_task(kind: str, one: str, bound: Any) -> list[Operation]:
    found = [
        Operation(
            "GET",
            f"{one}/timeline",
            f"get{kind}Timeline",
            "Rounds, phases, workers and columns to plot, from the history.",
            bound(get_timeline),
            Answer("The timeline.", {JSON: ref("Timeline")}),
            parameters=(NAME,),
            tag="tasks",
        ),
        Operation(
            "GET",
            f"{one}/events",
            f"list{kind}Events",
            "Every event of the task, in order.",
            bound(list_events),
            Answer("A page of them; go on with `after=<next>`.", {JSON: ref("Events")}),
            parameters=(NAME, LIMIT, AFTER),
            tag="tasks",
        ),
    ]
    if kind == _SERVICE:
        found.append(_inference_of(kind, one, bound))
    return [*found, *(_actions_on(kind, one, bound) if kind in PAUSABLE else ()), _log_of(kind, one, bound)]


def _inference_of(kind: str, one: str, bound: Any) -> Operation:
    return Operation(
        "GET",
        f"{one}/inference",
        f"get{kind}Inference",
        "Its counters over the last hour, and what other thresholds would send to the cloud.",
        bound(get_inference),
        Answer("Columns of equal length, null where nothing was heard; curves.", {JSON: ref("Inference")}),
        parameters=(NAME,),
        tag="tasks",
    )


def _actions_on(kind: str, one: str, bound: Any) -> list[Operation]:
    task = Answer(f"The {kind}.", {JSON: ref(kind)})
    actions = [
        ("pause", "Pause before the next round or stage.", pause_task),
        ("resume", "Go on after a pause.", resume_task),
    ]
    if kind == _JOB:
        actions.append(("trigger", "Ask for a round now, whatever the trigger says.", trigger_job))
    return [
        Operation(
            "POST",
            f"{one}/{name}",
            f"{name}{kind}",
            what,
            bound(handler),
            task,
            Role.OPERATOR,
            (NAME,) if name == "trigger" else (NAME, GENERATION, IF_MATCH),
            action=name,
            refusals=(409,),
            tag="tasks",
        )
        for name, what, handler in actions
    ]


def _log_of(kind: str, one: str, bound: Any) -> Operation:
    return Operation(
        "GET",
        f"{one}/workers/{{worker}}/log",
        f"get{kind}WorkerLog",
        "A part of a worker's log.",
        bound(get_log),
        Answer("Text; go on with `offset=<next_offset>`.", {JSON: ref("Log")}),
        parameters=(NAME, WORKER, OFFSET),
        refusals=(504,),
        tag="tasks",
    )


_APPLY = Operation(
    "POST",
    f"{PREFIX}/apply",
    "apply",
    "Write the resources of a manifest (YAML: several documents); all are checked before any is written.",
    apply,
    Answer("What was done with each.", {JSON: ref("Applied")}),
    Role.OPERATOR,
    (DRY_RUN,),
    APPLY_BODY,
    action="apply",
    refusals=(409,),
)
_MODELS = (
    Operation(
        "GET",
        f"{PREFIX}/models/{{name}}/versions",
        "listModelVersions",
        "The versions of a model, from the oldest, with their lineage; and which of them serve where.",
        list_versions,
        Answer("All of them.", {JSON: ref("ModelVersions")}),
        parameters=(NAME,),
        tag="models",
    ),
    Operation(
        "GET",
        f"{PREFIX}/datasets/{{name}}/snapshots",
        "listDatasetSnapshots",
        "What was trained on a dataset, the newest first: as it was then, by which task or round, and what was made from it.",
        list_snapshots,
        Answer("The newest of them.", {JSON: ref("DatasetSnapshots")}),
        parameters=(NAME,),
        tag="datasets",
    ),
    Operation(
        "GET",
        f"{PREFIX}/models/{{name}}/versions/{{version}}/content",
        "downloadModelVersion",
        "The arrays of a version, as a safetensors file; its digest is checked before the first byte leaves.",
        download_version,
        Answer(
            "The file.",
            {downloads.MEDIA_TYPE: {"type": "string", "format": "binary"}},
            headers={"ETag": "The quoted digest (sha256).", "Repr-Digest": "The digest (RFC 9530)."},
        ),
        parameters=(NAME, VERSION),
        tag="models",
    ),
    Operation(
        "POST",
        f"{PREFIX}/models/{{name}}/rollback",
        "rollbackModel",
        "Make an old version the newest one again, under a new number.",
        roll_back,
        Answer("The model.", {JSON: ref("Model")}),
        Role.OPERATOR,
        (NAME,),
        ROLLBACK_BODY,
        action="rollback",
        refusals=(409,),
        tag="models",
    ),
)
_STREAMS = (
    Operation(
        "GET",
        f"{PREFIX}/watch",
        "watch",
        "Resources as they are, then `synced`, then every change, as server-sent events `set` and `deleted`.",
        watch,
        Answer("Events; their ids are sequence numbers.", {SSE: schemas.TEXT}),
        parameters=(KIND, WATCHED_NAME, SINCE, LAST_EVENT_ID),
        refusals=(410,),
        tag="streams",
    ),
    Operation(
        "GET",
        f"{PREFIX}/live",
        "follow",
        "What pages show (overview, summaries, timelines) as server-sent events.",
        follow,
        Answer("Events; their ids are sequence numbers.", {SSE: schemas.TEXT}),
        parameters=(TOPICS, BRIEF, SINCE, LAST_EVENT_ID),
        refusals=(410,),
        tag="streams",
    ),
)
_REST = (
    Operation(
        "GET",
        f"{PREFIX}/overview",
        "getOverview",
        "Counts, what needs a person, throughput.",
        get_overview,
        Answer("The overview.", {JSON: ref("Overview")}),
        tag="portal",
    ),
    Operation(
        "GET",
        f"{PREFIX}/openapi.json",
        "getOpenapi",
        "This document.",
        get_openapi,
        Answer("OpenAPI 3.1.", {JSON: schemas.ANYTHING}),
        tag="portal",
    ),
    Operation(
        "GET", f"{PREFIX}/me", "getMe", "Who you are here.", get_me, Answer("You.", {JSON: ref("Me")}), tag="portal"
    ),
    Operation(
        "GET",
        f"{PREFIX}/tokens",
        "listTokens",
        "The tokens there are, without their secrets.",
        list_tokens,
        Answer("All of them.", {JSON: ref("Tokens")}),
        Role.ADMIN,
        tag="administration",
    ),
    Operation(
        "POST",
        f"{PREFIX}/tokens",
        "createToken",
        "Make a token; it is shown this once.",
        create_token,
        Answer("The token.", {JSON: ref("IssuedToken")}, 201),
        Role.ADMIN,
        body=NEW_TOKEN_BODY,
        action="create token",
        refusals=(409,),
        tag="administration",
    ),
    Operation(
        "DELETE",
        f"{PREFIX}/tokens/{{name}}",
        "revokeToken",
        "Revoke a token and end the sessions that were opened with it.",
        revoke_token,
        Answer("It is revoked.", status=204),
        Role.ADMIN,
        (TOKEN_NAME,),
        action="revoke token",
        tag="administration",
    ),
    Operation(
        "GET",
        f"{PREFIX}/audit",
        "listAudit",
        "The newest lines of the audit log.",
        list_audit,
        Answer("The newest first.", {JSON: ref("Audit")}),
        Role.ADMIN,
        (LIMIT,),
        tag="administration",
    ),
)

OPERATIONS: tuple[Operation, ...] = (
    _APPLY,
    *(operation for kind in sorted(KINDS) for operation in _of_kind(kind)),
    *_MODELS,
    *_STREAMS,
    *_REST,
)
