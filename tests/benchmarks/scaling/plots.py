"""The plots of docs/scaling.md: tall, for phones, with colours that colour-blind readers can
distinguish (Okabe and Ito) and different markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

Data = dict[str, Any]

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
MARKS = ["o", "s", "^", "D"]
STYLE = {
    "figure.facecolor": "white",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e3dc",
    "lines.linewidth": 2.0,
    "lines.markersize": 7,
    "legend.frameon": False,
}
PERCENT = FuncFormatter(lambda value, _: f"{value:.0%}")
PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


def draw(cases: Data, folder: Path) -> list[Path]:
    """Draw the plots for which there are results; return the files."""
    plots = {"workers": _workers, "coordinators": _coordinators, "losses": _losses}
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        return [plot(cases[name], folder) for name, plot in plots.items() if name in cases]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def _workers(data: Data, folder: Path) -> Path:
    figure, (top, below) = plt.subplots(2, 1, figsize=(6.5, 8.6), sharex=True, layout="constrained")
    scene = data["scene"]
    quotas = sorted({row["quota"] for row in data["rows"]})
    one = scene["in_flight"] * 10 / scene["latency"]
    for quota, colour, mark in zip(quotas, COLOURS, MARKS, strict=False):
        rows = [row for row in data["rows"] if row["quota"] == quota]
        counts = [row["workers"] for row in rows]
        label = f"{quota:,} requests a minute"
        style = {"color": colour, "marker": mark, "label": label}
        top.plot(counts, [row["used"] for row in rows], **style)
        below.plot(counts, [row["used"] * quota / 6 for row in rows], **style)
        below.axhline(quota / 6, color=colour, linewidth=1, linestyle=":")
    counts = sorted({row["workers"] for row in data["rows"]})
    highest = max(quotas) / 6
    near = [count for count in counts if count * one <= 2 * highest]
    below.plot(near, [count * one for count in near], "--", color="#555555", linewidth=1.4)
    below.annotate(
        f"{scene['in_flight']} in flight\nper worker",
        (near[1], near[1] * one),
        xytext=(14, -34),
        textcoords="offset points",
        color="#555555",
    )
    top.set_title("Share of the quota that is used")
    top.set_ylabel("share of the quota")
    top.set_ylim(0, 1.05)
    top.yaxis.set_major_formatter(PERCENT)
    top.legend(loc="lower right")
    below.set(xscale="log", yscale="log", xlabel="workers", ylabel="texts a second")
    below.set_title("Texts per second; dotted: the quota")
    below.set_xticks(counts, [f"{count:,}" for count in counts])
    below.minorticks_off()
    below.set_yticks([quota / 6 for quota in quotas])
    below.yaxis.set_major_formatter(PLAIN)
    below.minorticks_off()
    return _save(figure, folder / "workers.png")


def _coordinators(data: Data, folder: Path) -> Path:
    figure, (top, below) = plt.subplots(2, 1, figsize=(6.5, 8.6), sharex=True, layout="constrained")
    kinds = list(dict.fromkeys(row["kind"] for row in data["rows"]))
    for kind, colour, mark in zip(kinds, COLOURS, MARKS, strict=False):
        for limit, line in (("requests", "-"), ("tokens", "--")):
            rows = [row for row in data["rows"] if (row["kind"], row["limit"]) == (kind, limit)]
            quotas = [row["per_second"] for row in rows]
            style = {
                "color": colour,
                "marker": mark,
                "linestyle": line,
                "label": f"{kind}, limit in {limit}",
                "markerfacecolor": colour if limit == "requests" else "white",
            }
            top.plot(quotas, [row["coordinator_busy"] for row in rows], **style)
            below.plot(quotas, [row["reply_p99"] * 1e3 for row in rows], **style)
    top.set_title("Load of the coordinator")
    top.set_ylabel("share of its time")
    top.set_ylim(0, 1.05)
    top.yaxis.set_major_formatter(PERCENT)
    top.legend(loc="upper left", fontsize=10.5)
    below.set(xscale="log", yscale="log", ylabel="milliseconds", xlabel="quota, requests a second")
    below.set_title("Response time of the coordinator, p99")
    counts = sorted({row["per_second"] for row in data["rows"]})
    below.set_xticks(counts, [f"{count:,}" for count in counts])
    below.minorticks_off()
    below.yaxis.set_major_formatter(PLAIN)
    return _save(figure, folder / "coordinators.png")


def _losses(data: Data, folder: Path) -> Path:
    names = [
        "8 of 16 workers lost",
        "coordinator away for 30 s, 16 workers",
        "coordinator away for 2 s, 100 workers",
    ]
    found = {row["name"]: row for row in data["rows"]}
    figure, panels = plt.subplots(3, 1, figsize=(6.5, 8.6), sharex=True, layout="constrained")
    for axes, name in zip(panels, names, strict=True):
        row, at = found[name], int(data["at"])
        seconds = range(10 - at, len(row["used_by_second"]) - at)
        used = row["used_by_second"][10:]
        refused = row["refused_by_second"][10:]
        axes.bar(seconds, used, width=0.9, color=COLOURS[0], label="accepted")
        axes.bar(
            seconds, refused, width=0.9, bottom=used, color=COLOURS[1], hatch="//", label="refused"
        )
        axes.axhline(1.0, color="#555555", linewidth=1, linestyle=":")
        axes.set_title(f"{name}, {row['quota']:,} a minute")
        axes.set_ylabel("of the quota")
        axes.set_ylim(0, 2.3)
        axes.set_xlim(-10.6, 39.6)
        axes.yaxis.set_major_formatter(PERCENT)
    panels[0].legend(loc="upper right", ncols=2)
    panels[-1].set_xlabel("seconds after the failure")
    return _save(figure, folder / "losses.png")
