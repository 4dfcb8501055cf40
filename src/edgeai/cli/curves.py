"""What `edgeai demo --feature joint-inference` shows: the offload curve, the latencies, and the seconds of a cut link.

Tables on standard output, notes on standard error. Figures come from `demo_joint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_BAR = 16


class CurveView:
    """`quiet`: nothing is written."""

    def __init__(self, *, quiet: bool, notes: Console | None = None, out: Console | None = None) -> None:
        self._notes = notes or Console(stderr=True, quiet=quiet, highlight=False)
        self._out = out or Console(quiet=quiet, highlight=False)

    def note(self, text: str) -> None:
        self._notes.print(text, style="cyan", markup=False, soft_wrap=True)

    def curve(self, document: Mapping[str, Any]) -> None:
        edge, cloud = document["edge"], document["cloud"]
        self._say(aligned(("", "accuracy", "p50", "p99"), bold=True))
        for name, found in (("edge alone", edge), ("cloud alone", cloud)):
            self._say(aligned((name, f"{found['accuracy']:.3f}", _ms(found["p50_s"]), _ms(found["p99_s"]))))
        self._say("")
        self._say(aligned(("margin under", "sent", "accuracy", "at random", "of the gap"), bold=True))
        low, high = edge["accuracy"], cloud["accuracy"]
        for point in document["curve"]:
            self._say(curve_line(point, low, high))
        self._say("")

    def policy(self, policy: Mapping[str, Any]) -> None:
        self._say(
            f"as the service decides (margin under {policy['threshold']}): {policy['sent']:.0%} sent, "
            f"accuracy {policy['accuracy']:.3f}"
        )
        self._say(aligned(("answers of", "p50", "p99"), bold=True))
        for name in ("edge", "cloud"):
            self._say(aligned((name, _ms(policy[name]["p50_s"]), _ms(policy[name]["p99_s"]))))
        self._say("")

    def cut(self, cut: Mapping[str, Any]) -> None:
        self._say(aligned(("second", "edge", "cloud", "fell back", "errors"), bold=True))
        began, ended = cut["cut_s"]
        for row in cut["seconds"]:
            away = "  link cut" if began <= row["second"] + 0.5 < ended else ""
            cells = (str(row[name]) for name in ("second", "edge", "cloud", "fell_back", "errors"))
            self._say(aligned(tuple(cells)) + away)
        self._say("")

    def sum_up(self, document: Mapping[str, Any]) -> None:
        cut, counts = document["cut"], document["counts"]
        back, asked = cut["cloud_back_after_s"], counts["inferences"]
        lines = (
            f"questions      {asked}: {counts['sent']} sent to the cloud, {counts['answered']} answered in time",
            f"bytes          {counts['bytes_sent']} sent, {counts['bytes_received']} received",
            f"while cut      {cut['asked'] - cut['errors']} of {cut['asked']} answered, the slowest in {_ms(cut['longest_s'])}",
            f"cloud is back  {f'{back:.1f} s after the link' if back is not None else 'not yet'}",
        )
        for line in lines:
            self._say(line)

    def _say(self, text: str) -> None:
        bold = text.startswith("\0")
        self._out.print(text.removeprefix("\0"), markup=False, soft_wrap=True, style="bold" if bold else None)


def curve_line(point: Mapping[str, Any], low: float, high: float) -> str:
    """A point of the curve, with a bar that is empty at the edge's accuracy and full at the cloud's."""
    threshold = "all" if point["threshold"] > 1 else f"{point['threshold']:.2f}"
    share = (point["accuracy"] - low) / (high - low) if high > low else 0.0
    bar = "█" * round(min(max(share, 0.0), 1.0) * _BAR)
    accuracies = (f"{point[name]:.3f}" for name in ("accuracy", "at_random"))
    cells = (threshold, f"{point['sent']:.0%}", *accuracies, f"{point['recovered']:.0%}")
    return f"{aligned(cells)}  {bar}".rstrip()


def aligned(cells: Sequence[str], *, bold: bool = False) -> str:
    """The first to the left, numbers to the right. A leading NUL marks a heading for `CurveView`."""
    first, *numbers = cells
    return ("\0" if bold else "") + "  ".join([f"{first:<12}", *(f"{number:>10}" for number in numbers)])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
