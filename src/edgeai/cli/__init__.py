"""The command line, and the only place where parts are wired together."""

from edgeai.cli.app import main

__all__ = ["main"]
