"""The page `docs/api.md`, made from the table of operations and the table of metrics; a test compares the two.

`python -m edgeai.portal.reference > docs/api.md`
"""

from __future__ import annotations

from itertools import groupby

from edgeai import metrics
from edgeai.portal.api import OPERATIONS
from edgeai.portal.operations import Operation

_HEAD = """# The REST API and the metrics

Made from the code by `python -m edgeai.portal.reference > docs/api.md`. The whole truth about every operation, with its
parameters and the shape of every answer, is the OpenAPI document that a portal serves at `/api/v1/openapi.json`.

## Coming in

The portal is bound to loopback unless it has a TLS certificate. `edgeai up` prints a link that logs a browser in once,
within ten minutes. Programs send `Authorization: Bearer <token>`; a token is made by an administrator (`POST
/api/v1/tokens`), shown once and stored as a digest. Roles: a **viewer** looks, an **operator** also changes resources,
an **admin** also manages tokens and reads the audit log. From a cookie session everything that changes something also
needs the header `X-CSRF-Token` (`GET /api/v1/me`).

```sh
curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/api/v1/federatedtasks
curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/yaml" \\
  --data-binary @task.yaml http://127.0.0.1:8080/api/v1/apply
curl -H "Authorization: Bearer $TOKEN" -N http://127.0.0.1:8080/api/v1/watch
```

## What every answer keeps

* **Known or unknown.** Every resource carries `live`: `known`, `age_s` (seconds since the last sign; null: never) and
  `reason`. What is not known is shown as `Unknown`, never as its last good value: the phase of a task while the
  coordinator is silent, a worker on a node that is not heard of, everything while the bus or the store is away.
* **Refusals** are `application/problem+json` with one sentence in `detail`; `errors` has line and field of a refused
  manifest.
* **Conflicts.** A posted manifest with `metadata.generation`, `metadata.resourceVersion` or `metadata.uid` changes only
  that version; elsewhere the query parameter `generation` or the header `If-Match: "<resourceVersion>"` says the same.
  Otherwise 409. The `resourceVersion` changes with every status, the generation only with what a user asks for.
* **Lists** come by name in pages: `limit`, `metadata.continue`, `labelSelector` (`a=b,c!=d,e,!f`), `search`;
  `view=summary` gives one small line each.
* **Streams** (`/api/v1/watch`, `/api/v1/live`) are server-sent events: `set` (topic, name, object), `deleted` (topic,
  name), `synced` after everything that was there, `reset` when a reader has to begin again. Their ids are numbers of
  one growing sequence; `?since=` or `Last-Event-ID` goes on after one, `410` says that it is not known any more.
  Changes of the same thing between two looks of a reader are one event. Every list says the `metadata.sequence` from
  which to follow it.
* **Scripts and model files** cannot travel in a posted manifest: a relative `trainScriptDir` or a `url` of a model is
  refused unless `edgeai apply` has packed the same before. Absolute paths below an allowed root of the node work.

`/healthz` answers while the process lives, `/readyz` says with 503 and reasons when the bus or the store is away,
`/metrics` needs a token of a viewer.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for tag, members in groupby(sorted(OPERATIONS, key=lambda item: item.tag), key=lambda item: item.tag):
        parts.append(
            f"\n## {tag.capitalize()}\n\n| operation | role | does | parameters |\n| --- | --- | --- | --- |\n"
        )
        parts += [_row(operation) for operation in members]
    parts.append(
        "\n## Metrics\n\nOf every daemon, in Prometheus' text format; [monitoring.md](monitoring.md) says where. No label"
        "\nholds a worker or a sentence; of tasks only the jobs and services of a node have one.\n\n"
        "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    )
    parts += [
        f"| `{row.name}` | {row.kind} | {', '.join(f'`{label}`' for label in row.labels) or 'none'} | {row.help} |\n"
        for row in metrics.TABLE
    ]
    reasons = ", ".join(f"`{reason.value}`" for reason in metrics.Refusal)
    parts.append(f"\nReasons of refused messages: {reasons}.\n")
    return "".join(parts)


def _row(operation: Operation) -> str:
    names = ", ".join(f"`{parameter.name}`" for parameter in operation.parameters if parameter.place != "path")
    role = operation.role.word
    return f"| `{operation.method} {operation.path}` | {role} | {operation.summary} | {names or 'none'} |\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
