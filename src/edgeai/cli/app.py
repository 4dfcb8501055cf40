"""`edgeai`: the table of commands. Data goes to standard output, progress and notices to standard error.

Nothing heavy may be imported here or in `commands`: `edgeai --help` answers at once. How a command ends is in `outcome`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgeai.cli.commands import daemons, history, inference, installation, jobs, models, playground, portal, resources
from edgeai.cli.options import version_line
from edgeai.cli.outcome import exit_code_of

app = typer.Typer(
    name="edgeai",
    help="Edge AI without a cluster: train, improve and serve models where the data is.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (playground, resources, jobs, inference, history, models, daemons, portal, installation):
    module.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(version_line())
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    raise SystemExit(exit_code_of(lambda: app(given, prog_name="edgeai", standalone_mode=False)))
