"""What a worker asks of the machine that it runs on: image, resources, variables, secrets, network.

The fields of `workerSpec` that training and aggregation workers share. Whether a node can give what is asked is for its
controller to say; here is only what may be asked at all. Quantities are written as in Kubernetes.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from edgeai.resources.base import Part
from edgeai.resources.names import NETWORK_PATTERN, Name
from edgeai.resources.parameters import TaskParameters
from edgeai.resources.refusals import FieldRefused, quoted

LEAST_BYTES, MOST_CPUS, MOST_GPUS = 16 * 1024**2, 1024, 64
_UNITS = {
    "": 1,
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
_SIZE = re.compile(r"(\d{1,15})(\.\d{1,6})?([KMGT]i|[kMGT])?")
_CPU = re.compile(r"\d{1,7}m|\d{1,4}(\.\d{1,3})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_RESERVED = "EDGEAI_"
# Of a registry's references: host and port, path, tag, digest. What they mean is for the engine to say.
_IMAGE = re.compile(r"[a-z0-9]([a-zA-Z0-9._:/-]{0,254}[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?")


def cpus(value: object) -> float:
    """Whole and parts of processors. Raises ValueError."""
    text = str(value)
    found = -1.0
    if not isinstance(value, bool) and _CPU.fullmatch(text):
        found = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    if not 0 < found <= MOST_CPUS:
        raise ValueError(f'cpu is a number of processors such as 2, 0.5 or "500m", not {quoted(value)}')
    return found


def memory_bytes(value: object) -> int:
    """Raises ValueError."""
    return _size_bytes("memory", value)


def disk_bytes(value: object) -> int:
    """Raises ValueError."""
    return _size_bytes("disk", value)


def _size_bytes(what: str, value: object) -> int:
    match = None if isinstance(value, bool | float) else _SIZE.fullmatch(str(value))
    found = int(float(match[1] + (match[2] or "")) * _UNITS[match[3] or ""]) if match else 0
    if not LEAST_BYTES <= found < 2**53:
        raise ValueError(f'{what} is a size of at least "16Mi" such as "512Mi" or "2Gi", not {quoted(value)}')
    return found


def _is(check: Any) -> AfterValidator:
    def checked(value: Any) -> Any:
        check(value)
        return value

    return AfterValidator(checked)


def _checked_image(text: str) -> str:
    if not _IMAGE.fullmatch(text) or "//" in text:
        raise ValueError(f"{quoted(text)} is not an image such as edgeai/worker-numpy:1.0 or name@sha256:...")
    return text


def _checked_variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is not a name of a variable: letters, digits and _, not starting with a digit"
        )
    if text.startswith(_RESERVED):
        raise ValueError(f"{text}: names that start with {_RESERVED} are set by the system")
    return text


def _checked_value(text: str) -> str:
    if "\0" in text:
        raise ValueError("a value holds no null byte")
    return text


def _checked_file(text: str) -> str:
    path = PurePosixPath(text)
    if not text.isprintable() or "\\" in text or path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{quoted(text)} is not a file inside the node's secrets folder")
    return text


# Numbers or text, told apart by the checks: a schema that says both is no structural one, so it says nothing.
Cpu = Annotated[Any, _is(cpus), WithJsonSchema({"description": 'processors: 2, 0.5 or "500m"'})]
Memory = Annotated[Any, _is(memory_bytes), WithJsonSchema({"description": 'bytes: "512Mi", "2Gi"'})]
Disk = Annotated[Any, _is(disk_bytes), WithJsonSchema({"description": 'bytes: "512Mi", "2Gi"'})]


class WorkerResources(Part):
    """Limits of a worker, and devices that it needs. What is not named is as the node has it."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    disk: Disk | None = None
    gpus: Annotated[int, Field(strict=True, ge=0, le=MOST_GPUS)] = 0


class Variable(Part):
    """For settings, not for secrets: whoever may see the task sees it."""

    name: Annotated[str, AfterValidator(_checked_variable)]
    value: Annotated[str, Field(max_length=4096), AfterValidator(_checked_value)]


SecretFile = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_checked_file)]
"""A file of the node's secrets folder, by its path in it."""


class Secret(Part):
    """A file of the node's secrets folder, which the worker finds as `/edgeai/secrets/<name>`."""

    name: Name
    file: SecretFile


def _named_once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    seen: set[str] = set()
    for place, item in enumerate(items):
        if item.name in seen:
            raise FieldRefused(f"{quoted(item.name)} is given twice", place, "name")
        seen.add(item.name)
    return items


class WorkerSpec(Part):
    """What the `workerSpec` of every role has.

    Without an image, framework and version choose one of ours; without a network there is none.
    """

    parameters: TaskParameters = ()
    image: Annotated[str, Field(max_length=400), AfterValidator(_checked_image)] | None = None
    resources: WorkerResources = WorkerResources()
    env: Annotated[tuple[Variable, ...], Field(max_length=100), AfterValidator(_named_once)] = ()
    secrets: Annotated[tuple[Secret, ...], Field(max_length=20), AfterValidator(_named_once)] = ()
    network: Annotated[str, Field(pattern=NETWORK_PATTERN)] | None = None
