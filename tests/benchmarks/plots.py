"""The plots of docs/benchmarks.md, drawn from the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Data = dict[str, Any]

OURS, PEER, LIMIT = "#0b6e6e", "#b9b4a8", "#c2410c"
SHADES = ["#0b6e6e", "#3a9188", "#6fb1a0", "#a3cdb8", "#d8b365", "#8c6d46", "#5d5a54"]
STYLE = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e3dc",
    "grid.linewidth": 0.8,
}


def draw(results: Data, folder: Path) -> list[Path]:
    """Draw the plots for which there are results; return the files."""
    cases, files = results["cases"], []
    with plt.rc_context(STYLE):
        if {"latency", "cpu"} <= cases.keys():
            files.append(_peers(cases, folder / "peers.png"))
        if "scaling" in cases:
            files.append(_scaling(cases["scaling"], folder / "scaling.png"))
        if {"breakdown", "cpu"} <= cases.keys():
            files.append(_breakdown(cases, folder / "breakdown.png"))
    return files


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return path


def _bars(axes: Any, rows: list[Data], figure: str, form: str) -> None:
    rows = rows[::-1]
    values = [row[figure] for row in rows]
    colours = [OURS if row["ours"] else PEER for row in rows]
    axes.barh([row["name"] for row in rows], values, color=colours, height=0.72)
    axes.grid(axis="y", visible=False)
    for place, value in enumerate(values):
        axes.annotate(
            form.format(value),
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.tick_params(axis="y", length=0)


def _peers(cases: Data, path: Path) -> Path:
    latency = cases["latency"]
    costs = [row for row in cases["cpu"]["rows"] if not row["floor"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6), sharey=True, layout="constrained")
    _bars(left, latency["rows"], "wall", "{:.2f}")
    left.set_xscale("log")
    walls = [row["wall"] for row in latency["rows"]]
    left.set_xlim(min(latency["bound"], *walls) / 2, max(walls) * 2.2)
    left.axvline(latency["bound"], color=LIMIT, linewidth=1.2, linestyle="--")
    left.set_title(
        f"Seconds for {latency['texts']:,} texts, server {latency['latency_ms']:.0f} ms (log scale)"
    )
    left.set_xlabel(
        f"dashed: no client with 32 requests in flight can beat {latency['bound']:.2f} s"
    )
    _bars(right, costs, "cpu_us", "{:.0f}")
    right.set_xlim(0, max(row["cpu_us"] for row in costs) * 1.15)
    right.set_title("The client's CPU, microseconds a text, server 0 ms")
    right.set_xlabel("process CPU, all threads and the kernel's work for them")
    return _save(figure, path)


def _scaling(data: Data, path: Path) -> Path:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    points = data["by_size"]["nexusflow"]
    sizes = [point["texts"] for point in points]
    left.plot(
        sizes, [p["cpu_us"] * p["texts"] / 1e6 for p in points], "o-", color=OURS, label="CPU"
    )
    left.plot(sizes, [p["wall"] for p in points], "s--", color="#6fb1a0", label="wall")
    left.set(xscale="log", yscale="log", xlabel="texts", ylabel="seconds")
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.minorticks_off()
    left.set_title(f"More texts: CPU grows as n^{data['exponent_cpu']:.2f}")
    left.legend(frameon=False)
    colours = (OURS, "#8c6d46")
    for (name, found), colour in zip(data["by_flight"].items(), colours, strict=True):
        coalescer = [point["in_flight"] for point in found]
        middle.plot(coalescer, [p["cpu_us_request"] for p in found], "o-", color=colour, label=name)
        right.plot(coalescer, [p["wall"] for p in found], "o-", color=colour, label=name)
    bounds = data["by_flight"]["nexusflow"]
    right.plot(coalescer, [p["bound"] for p in bounds], "--", color=LIMIT, label="bound")
    middle.set(xscale="log", xlabel="requests in flight", ylabel="microseconds")
    middle.set_ylim(bottom=0)
    middle.set_title("More in flight: CPU a request")
    right.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="seconds")
    right.set_title(f"{data['flight_texts']:,} texts, server {data['flight_latency_ms']:.0f} ms")
    for axes in (middle, right):
        axes.set_xticks(coalescer, [str(flight) for flight in coalescer])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8.5)
    return _save(figure, path)


def _breakdown(cases: Data, path: Path) -> Path:
    stages = cases["breakdown"]["stages"]
    others = [row for row in cases["cpu"]["rows"] if not (row["ours"] or row["floor"])]
    best = min((row for row in others if row["gives"] == "lists"), key=lambda row: row["cpu_us"])
    figure, axes = plt.subplots(figsize=(13, 3.2), layout="constrained")
    start = 0.0
    for (name, value), colour in zip(stages.items(), SHADES, strict=True):
        axes.barh(["nexusflow\nfor LangChain"], [value], left=start, color=colour, label=name)
        if value > 0.02 * best["cpu_us"]:
            axes.text(start + value / 2, 0, f"{value:.1f}", ha="center", va="center", fontsize=8.5)
        start += value
    axes.annotate(
        f"{start:.0f}", (start, 0), xytext=(5, 0), textcoords="offset points", va="center"
    )
    axes.barh(["best peer"], [best["cpu_us"]], color=PEER)
    axes.text(
        best["cpu_us"] / 2, 1, f"{best['name']}: {best['cpu_us']:.0f}", ha="center", va="center"
    )
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlabel("CPU microseconds a text, to lists of floats")
    axes.set_title("Where the CPU goes")
    axes.legend(
        frameon=False, fontsize=8.5, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.28)
    )
    return _save(figure, path)
