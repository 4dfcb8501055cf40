"""`docs/cli.md`, made from the commands; a test compares the two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from edgeai.cli.app import app

_HEAD = """# The command line

Made from `src/edgeai/cli/` by `python -m edgeai.cli.reference > docs/cli.md`. `edgeai COMMAND --help` says the same.

## What holds for all commands

Data goes to standard output, progress and notices to standard error. A resource is named `KIND NAME` or `KIND/NAME`; kinds
are `task` (`FederatedTask`), `job` (`IncrementalLearningJob`), `service` (`JointInferenceService`), `dataset`, `model` and
`node` (`EdgeNode`), also in the plural. Where a command is about a task, a job or a service, its name is enough. Whatever
goes wrong is said in one line that names who, what and what to do; what else is wrong with a manifest stands below it.

`get` and `describe` show what is known now. While the coordinator does not answer within 2 seconds, phases, workers, breakers,
replicas and readiness are `Unknown`, with the age of the last sign, and a line on standard error says so; so is what hangs on a
node that has not been heard of for 16 seconds. `-o json`, `-o yaml`, `--json`, `watch` and `wait` go by
what is stored, beside the same line.

| exit code | means |
| --- | --- |
| 0 | ok |
| 1 | failed: the task has failed, a check of `doctor`, or what is waited for cannot come true any more |
| 2 | usage: the command itself is not right |
| 3 | not found |
| 4 | refused: a manifest that is not acceptable, a conflict, a wrong state |
| 5 | the cloud does not answer |
| 124 | a wait timed out |
| 130 | Ctrl-C (128 and the number of the signal that ended it) |

Commands on resources find their cloud by the context: the file that `EDGEAI_CONTEXT` names, by default `edgeai/context.json`
in the user's configuration folder (`XDG_CONFIG_HOME`). `edgeai up` writes it, unless it names a cloud that still runs, and
removes its own when it ends. Every cloud leaves one in its state directory as well:
`EDGEAI_CONTEXT=/var/lib/edgeai/cloud/context.json edgeai get nodes`, and `<state-dir>/cloud/context.json` for one of `up`.

| variable | means |
| --- | --- |
| `EDGEAI_CONTEXT` | the context file |
| `EDGEAI_LOG`, `EDGEAI_LOG_FORMAT` | level (`debug`, `info`, `warning`, `error`) and form (`json`) of the log |
| `EDGEAI_CLOUD_<KEY>`, `EDGEAI_EDGE_<KEY>` | keys of `config/coordinator.toml` and `config/edge.toml`; lists as JSON |
| `XDG_DATA_HOME` | where daemons keep their state by default: `edgeai/cloud`, `edgeai/<node>`, `edgeai/playground` below it |

## What becomes of a playground

`demo` and `up` start every part as a process and end them all: every task is deleted, finished ones too (`stopping: deleting
2 tasks`), workers are stopped, then daemons and brokers. Ctrl-C, SIGTERM and a closed terminal do the same at any moment; a
second Ctrl-C does not wait for the tasks. `up` keeps its state directory, and with it models, datasets and the history: the
next `up` on it has them.

If the command itself is killed with -9, or the machine goes down, nobody deletes tasks: its daemons notice, stop everything,
and remove what was temporary. The next `up` on the state directory goes on with the tasks where they were.

The daemons `cloud` and `edge` of real machines write one line `ready ...` to standard output when they are up; an edge does
not wait for the cloud. They leave brokers, bridges and workers running when they are stopped; the next start finds and adopts
them. `edgeai stop --state-dir FOLDER` ends all of it; a daemon that systemd keeps running is stopped with `systemctl stop`
before.

## Commands
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for path, command in _commands(get_command(app), "edgeai"):
        parts.append(f"\n### {path}\n\n{_sentence(command.help)}\n\n    {_usage(path, command)}\n")
        options = [
            parameter for parameter in command.params if parameter.param_type_name == "option" and parameter.help
        ]
        if options:
            parts.append("\n| option | means | default |\n| --- | --- | --- |\n")
            parts += [_row(option) for option in options]
    return "".join(parts)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None or (command.invoke_without_command and " " in path):
        yield path, command
    if inner is not None:
        for name, each in inner.items():
            yield from _commands(each, f"{path} {name}")


def _usage(path: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    required = [each for each in command.params if each.param_type_name == "option" and each.required]
    words = [path, *(_metavar(argument) for argument in arguments)]
    words += [f"{each.opts[0]} {_metavar(each)}" for each in required]
    optional = any(each.param_type_name == "option" and not each.required for each in command.params)
    return " ".join([*words, "[options]"] if optional else words).replace("\\|", "|")


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    value = "" if option.is_flag else f" {_metavar(option)}"
    default = option.default
    shown = "" if callable(default) or default in (None, False, (), []) else f"`{getattr(default, 'value', default)}`"
    return f"| {names}{value} | {_sentence(option.help)} | {'required' if option.required else shown} |\n"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper()).replace("|", "\\|")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
