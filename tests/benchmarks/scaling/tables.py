"""The results as the tables of docs/scaling.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .cases import TEXTS, chunks

Data = dict[str, Any]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _with(row: Data, name: str, form: str, by: float = 1.0) -> str:
    """A mean and half the width of its interval."""
    return f"{row[name] * by:{form}} ± {row[name + '_within'] * by:{form}}"


def _time(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.0f} seconds"


def _money(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"


def of_chunks() -> str:
    return _table(
        ["chunks", "tokens", "CNY", "requests", "time at 1,800 requests a minute"],
        [
            (
                f"{row['chunks']:,}",
                f"{row['tokens'] / 1e6:,.0f} M",
                _money(row["cost"]),
                f"{row['requests']:,.0f}",
                _time(row["seconds"]),
            )
            for row in chunks()
        ],
    )


def of_workers(data: Data) -> str:
    quotas = sorted({row["quota"] for row in data["rows"]})
    counts = sorted({row["workers"] for row in data["rows"]})
    found = {(row["workers"], row["quota"]): row for row in data["rows"]}
    rows = []
    for workers in counts:
        cells: list[object] = [f"{workers:,}"]
        for quota in quotas:
            row = found[workers, quota]
            cells += [f"{row['used']:.1%}", f"{row['refused']:.2%}"]
        cells.append(f"{max(found[workers, q]['reply_p99'] for q in quotas) * 1e3:.1f}")
        rows.append(cells)
    head = ["workers"]
    for quota in quotas:
        head += [f"{quota:,} a minute: used", "refused"]
    return _table([*head, "coordinator's answer, p99 ms"], rows)


def of_coordinators(data: Data) -> str:
    return _table(
        [
            "coordinator, limit",
            "quota, requests/s",
            "used",
            "refused",
            "calls/s",
            "texts per call",
            "busy",
            "answer p50 ms",
            "p99 ms",
        ],
        [
            (
                f"{row['kind']}, {row['limit']}",
                f"{row['per_second']:,}",
                f"{row['used']:.1%}",
                f"{row['refused']:.2%}",
                f"{row['calls_per_second']:,.0f}",
                f"{row['used'] * row['per_second'] * TEXTS / row['calls_per_second']:,.0f}",
                f"{row['coordinator_busy']:.0%}",
                f"{row['reply_p50'] * 1e3:.1f}",
                f"{row['reply_p99'] * 1e3:.1f}",
            )
            for row in data["rows"]
            if row["per_second"] >= 300
        ],
    )


def of_losses(data: Data) -> str:
    return _table(
        [
            "what happens",
            "requests a minute",
            "quota lost, in seconds",
            "requests refused",
            "texts paid for twice",
        ],
        [
            (
                row["name"].removesuffix(", higher quota"),
                f"{row['quota']:,}",
                f"{max(0.0, row['seconds_lost']):.1f}",
                f"{row['refused']:.0f}",
                row["texts_again"],
            )
            for row in data["rows"]
        ],
    )


def of_faults(data: Data) -> str:
    return _table(
        ["answered with 503", "quota used", "used for vectors", "failed batches"],
        [
            (
                f"{row['faults']:.0%}",
                _with(row, "used", ".1f", 100) + " %",
                f"{row['texts_per_second'] / 3_000:.1%}",
                f"{row['failed']:.0f}",
            )
            for row in data["rows"]
        ],
    )


def of_alone(data: Data) -> str:
    return _table(
        ["workers", "quota used", "requests refused", "failed batches per minute"],
        [
            (
                row["workers"],
                f"{row['used']:.1%}",
                _with(row, "refused", ".1f", 100) + " %",
                f"{row['failed']:.1f}",
            )
            for row in data["rows"]
        ],
    )


def of_corpus(data: Data) -> str:
    return _table(
        [
            "requests a minute",
            "workers",
            "texts a second",
            f"days for {data['texts']:,} texts",
            f"{data['currency']} in total",
            "tokens a day",
            f"{data['currency']} a day",
            "simulated seconds",
        ],
        [
            (
                f"{row['quota']:,}",
                row["workers"],
                _with(row, "texts_per_second", ",.1f"),
                _with(row, "days", ".3f"),
                f"{row['cost']:,.0f}",
                f"{row['tokens_a_day'] / 1e9:,.1f} G",
                f"{row['cost_a_day']:,.0f}",
                f"{row['simulated']:.0f}",
            )
            for row in data["rows"]
        ],
    )


def _limit(row: Data) -> str:
    if row["requests_per_minute"] is not None:
        return f"{row['requests_per_minute']:,} requests a minute"
    return f"{row['tokens_per_minute']:,} tokens a minute"


def of_measured(data: Data) -> str:
    return _table(
        [
            "limit",
            "processes",
            "used, real",
            "used, model",
            "model is off by",
            "refused, real",
            "refused, model",
        ],
        [
            (
                _limit(row),
                row["processes"],
                f"{row['real']['used']:.1%}",
                f"{row['model']['used']:.1%}",
                f"{row['off'] * 100:+.1f} %",
                f"{row['real']['refused']:.2%}",
                f"{row['model']['refused']:.2%}",
            )
            for row in data["rows"]
        ],
    )


def ray_runs(path: Path, cases: Data) -> dict[str, str]:
    """Return the tables of the runs on Ray by tests/benchmarks/ray_runs.py, if there are any."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    quota = found["measured"]["requests_per_minute"]
    model = {row["workers"]: row for row in cases["workers"]["rows"] if row["quota"] == quota}
    real = _table(
        ["Ray Data, workers", "used, real", "used, model", "model is off by", "refused, real"],
        [
            (
                row["workers"],
                f"{row['quota_used']:.1%}",
                f"{model[row['workers']]['used']:.1%}",
                f"{(model[row['workers']]['used'] / row['quota_used'] - 1) * 100:+.1f} %",
                f"{row['refused_share']:.2%}",
            )
            for row in found["dataset_runs"]
            if row["workers"] in model
        ],
    )
    actor = _table(
        ["workers that only ask the actor", "requests a lease", "leases/s", "texts/s"],
        [
            (
                row["workers"],
                row["requests_a_lease"],
                f"{row['leases_per_second']:,}",
                f"{row['texts_per_second']:,}",
            )
            for row in found["actor_runs"]
        ],
    )
    return {"ray": f"{real}\n{actor}"}


def tables(results: Data, folder: Path) -> dict[str, str]:
    """Return the tables by the names of their markers; ``folder`` holds the results."""
    made = {"chunks": of_chunks()}
    writers = {
        "workers": of_workers,
        "coordinators": of_coordinators,
        "losses": of_losses,
        "faults": of_faults,
        "alone": of_alone,
        "corpus": of_corpus,
        "measured": of_measured,
    }
    for name, data in results["cases"].items():
        made[name] = writers[name](data)
    made["run"] = of_run(results)
    return {**made, **ray_runs(folder / "ray_runs.json", results["cases"])}


def of_run(results: Data) -> str:
    cases = results["cases"].values()
    requests = sum(
        row.get("model", row).get("requests", 0) * row.get("model", row).get("runs", 1)
        for case in cases
        for row in case["rows"]
    )
    seconds = sum(case["seconds"] for case in cases)
    work = results["cases"].get("measured", {}).get("file_work")
    line = f"{seconds / 60:.1f} minutes, {requests:,.0f} requests simulated"
    if work is not None:
        line += f"; a reservation in the cache file took {work * 1e3:.2f} ms"
    return f"{line}. {results['machine']}.\n"
