"""How workers start: one program in one slot directory, found again after a restart."""

from edgeai.launcher.base import ExitReason, ExitRecord, Launcher, LaunchSpec, Running
from edgeai.launcher.process import ProcessLauncher

__all__ = ["ExitReason", "ExitRecord", "LaunchSpec", "Launcher", "ProcessLauncher", "Running"]
