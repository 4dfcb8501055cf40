"""Who may come into a portal, from the command line of its machine: one-time links, tokens; and the audit log says so.

A portal that runs sees every change at once: what lets in are files of its state directory (`portal.access`). So whoever may
write there is an administrator, with or without a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from edgeai.cli.outcome import say
from edgeai.cli.output import age, aligned
from edgeai.errors import DamagedFile, NotFound, Refused
from edgeai.events.address import CLOUD
from edgeai.portal.access import Access, Grant, Role
from edgeai.portal.audit import AuditLog, Line
from edgeai.portal.place import read_place
from edgeai.resources.base import instant
from edgeai.settings import data_folder, read_context

_HERE = "command line"
"""What the audit log names as the address."""


def make_link(state_dir: Path | None, role: str) -> str:
    """An address that logs in once, within ten minutes. Raises as `portal_folder`; Refused."""
    folder = portal_folder(state_dir)
    place = read_place(folder)
    if not psutil.pid_exists(place.process):
        say(f"the portal of {folder} does not run now: start it within ten minutes for the link to be of use")
    secret = Access(folder).issue_link(role=Role.named(role))
    _audit(folder, "make link", role, lambda: Access(folder).use_link(secret))
    return f"{place.url}/login?link={secret}"


def create_token(state_dir: Path | None, name: str, role: str) -> str:
    """The secret. Raises as `portal_folder`; Refused: there is one of that name."""
    folder = portal_folder(state_dir)
    secret = Access(folder).create_token(name, Role.named(role))
    _audit(folder, "create token", f"{name} ({role})", lambda: Access(folder).revoke_token(name))
    return secret


def revoke_token(state_dir: Path | None, name: str) -> None:
    """Raises as `portal_folder`; NotFound: no such token."""
    folder = portal_folder(state_dir)
    Access(folder).revoke_token(name)
    _audit(folder, "revoke token", name)
    print(f"token {name} revoked")


def token_lines(state_dir: Path | None) -> list[str]:
    """A table, by name. Raises as `portal_folder`."""
    grants = Access(portal_folder(state_dir)).tokens()
    if not grants:
        return ["no tokens"]
    now = datetime.now(UTC)
    return aligned([("NAME", "ROLE", "AGE"), *((grant.name, grant.role, _age(grant, now)) for grant in grants)])


def portal_folder(state_dir: Path | None) -> Path:
    """The state directory of the portal that is meant: the one given, of the cloud given, or that is found.

    Raises:
        NotFound: no portal was started there. Refused: it belongs to another user.
    """
    candidates = [state_dir, state_dir / "portal"] if state_dir else _usual_folders()
    found = next((folder.absolute() for folder in candidates if _has_place(folder)), None)
    if found is None:
        hint = "start it first (`edgeai portal`, or portal_port of `edgeai cloud`), or name its folder with --state-dir"
        raise NotFound("portal", f"in {state_dir or data_folder()}", hint)
    owner = found.stat().st_uid
    if owner != os.geteuid():
        # A file of ours could not be read by the portal: nobody would come in.
        raise Refused(f"the portal's folder {found} belongs to user {owner}: run this as that user")
    return found


def _usual_folders() -> list[Path]:
    """Of the cloud of the context, of `edgeai portal`, and of the cloud that runs here by default."""
    found = []
    with contextlib.suppress(NotFound, DamagedFile):
        if context := read_context().state_dir:
            found.append(Path(context) / "portal")
    return [*found, data_folder() / "portal", data_folder() / CLOUD / "portal"]


def _has_place(folder: Path) -> bool:
    try:
        read_place(folder)
    except NotFound:
        return False
    return True


def _audit(folder: Path, action: str, target: str, undo: Callable[[], object] | None = None) -> None:
    """Raises Refused, with the deed undone, where it can be."""
    audit = AuditLog(folder)
    line = Line(instant(datetime.now(UTC)), getpass.getuser(), "", _HERE, action, target, 200)
    asyncio.run(audit.write(line))
    if audit.problem:
        if undo is not None:
            undo()
        raise Refused(f"{audit.problem}; {'nothing was done' if undo else 'it is done all the same'}: look at {folder}")


def _age(grant: Grant, now: datetime) -> str:
    return age(datetime.fromtimestamp(grant.created, UTC).isoformat(), now)
