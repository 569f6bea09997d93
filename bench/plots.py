"""The plots of docs/performance.md, drawn from the stored results."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.processes import ROOT
from bench.results import result, row
from bench.scenarios import DIRECT, FLOOR, FORWARDER, OLD_4, OLD_6, TRUNKLINE

IMAGES = ROOT / "docs" / "images"
COLOURS = {
    DIRECT: "#9aa5b1",
    FLOOR: "#c9d1d9",
    FORWARDER: "#6b7a8c",
    OLD_6: "#c2571a",
    OLD_4: "#e8a33d",
    TRUNKLINE: "#0b7a75",
}
DELAYS = {"http_1": "no delay", "delay5": "5 ms", "delay50": "50 ms"}
IN_FLIGHT = {"http_1": 1, "http_16": 16, "http_64": 64, "http_256": 256}


def draw(names: Sequence[str]) -> None:
    """Draw these pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name in names:
        {
            "response-times": response_times,
            "by-inflight": by_inflight,
            "idle-memory": idle_memory,
            "soak": over_time,
        }[name]()


def response_times() -> None:
    """The median response time by network delay."""
    variants = (DIRECT, TRUNKLINE, OLD_4, OLD_6)
    with _plot("response-times.png", "Response time of one call, median", 1) as [axes]:
        width = 0.8 / len(variants)
        for at, variant in enumerate(variants):
            values = [row(name, "variant", variant)["p50_ms"] for name in DELAYS]
            places = [place + (at - len(variants) / 2 + 0.5) * width for place in range(len(DELAYS))]
            bars = axes.bar(places, values, width * 0.92, label=variant, color=COLOURS[variant])
            axes.bar_label(bars, fmt="%.3g", fontsize=7)
        axes.set_xticks(range(len(DELAYS)), [f"{delay} before the server" for delay in DELAYS.values()])
        axes.set_yscale("log")
        axes.set_ylabel("ms")
        axes.legend(frameon=False)


def by_inflight() -> None:
    """CPU and throughput by calls in flight."""
    variants = (FLOOR, FORWARDER, TRUNKLINE, OLD_4, OLD_6)
    with _plot("by-inflight.png", "HTTP to HTTP, no delay, the gateway on one core", 2) as (cpu, rate):
        for variant in variants:
            style: dict[str, Any] = {"label": variant, "color": COLOURS[variant], "marker": "o"}
            for axes, metric in ((cpu, "cpu_us"), (rate, "calls_per_second")):
                values = [row(name, "variant", variant)[metric] for name in IN_FLIGHT]
                axes.plot(list(IN_FLIGHT.values()), values, **style)
        for axes, label in ((cpu, "CPU of the gateway, µs a call"), (rate, "calls/s")):
            axes.set_xscale("log", base=4)
            axes.set_yscale("log")
            axes.set_xticks(list(IN_FLIGHT.values()), [str(count) for count in IN_FLIGHT.values()])
            axes.set_xlabel("calls in flight")
            axes.set_ylabel(label)
        cpu.legend(frameon=False, fontsize=8)


def idle_memory() -> None:
    """What an idle workflow costs."""
    rows = result("memory")["rows"]
    with _plot("idle-memory.png", "Memory of an idle workflow", 1) as [axes]:
        names = [one["variant"] for one in rows]
        colours = [COLOURS[FORWARDER] if "SDK" in name else COLOURS[TRUNKLINE] for name in names]
        bars = axes.barh(names, [one["KiB"] for one in rows], color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("KiB")


def over_time() -> None:
    """Memory and descriptors in the course of a soak."""
    found = result("soak")
    course = found["rows"][0]["course"]
    minutes = [second / 60 for second in course["seconds"]]
    with _plot("soak.png", found["about"], 2) as axes:
        for one, key, label in zip(axes, ("rss_mib", "descriptors"), ("RSS, MiB", "open descriptors"), strict=True):
            one.plot(minutes, course[key], color=COLOURS[TRUNKLINE])
            one.set_ylim(0, max(course[key]) * 1.25)
            one.set_xlabel("minutes")
            one.set_ylabel(label)


@contextmanager
def _plot(file: str, title: str, columns: int) -> Iterator[Any]:
    """Axes beside each other, stored when they are drawn."""
    figure, axes = plt.subplots(1, columns, figsize=(9, 3.6), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    yield axes[0]
    figure.savefig(IMAGES / file, dpi=110, metadata={"Software": None})
    plt.close(figure)
