"""The token of one run of a worker: whoever holds it speaks for that worker, as long as the run lasts.

A worker finds it in a file, and every event that it sends carries it in the header. Its controller tells the digest, which
reaches the task's aggregation worker through the coordinator: the token itself is in no document, log or variable. The digest
is bound to task and worker, so a token is worth nothing under another name. Pure; who makes tokens is the controller.
"""

from __future__ import annotations

import hashlib
import hmac

TOKEN_BYTES = 32


def token_digest(task_uid: str, worker: str, token: bytes) -> str:
    return hashlib.sha256(b"\n".join((task_uid.encode(), worker.encode(), token))).hexdigest()


def is_token(digest: str, task_uid: str, worker: str, token: bytes) -> bool:
    """Whether this is the token with that digest; never without one."""
    return bool(digest and token) and hmac.compare_digest(digest, token_digest(task_uid, worker, token))
