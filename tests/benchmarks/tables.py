"""Results as Markdown tables, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Data = dict[str, Any]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _name(row: Data) -> str:
    return f"**{row['name']}**" if row["ours"] else row["name"]


def _best(rows: Iterable[Data], figure: str, *, most: bool = False) -> float:
    values = [row[figure] for row in rows if not (row["ours"] or row["floor"])]
    return max(values) if most else min(values)


def _arrays(rows: Iterable[Data]) -> list[Data]:
    """Leave out clients that return base64, which must still be decoded."""
    return [row for row in rows if row["gives"] != "base64"]


def _verdict(value: float, target: float, *, at_most: bool = False) -> str:
    return "yes" if (value <= target if at_most else value >= target) else "**no**"


def of_latency(data: Data) -> str:
    rows = data["rows"]
    return _table(
        ["", "seconds", "texts a second", "share of the bound", "most in flight", "CPU us a text"],
        [
            (
                _name(row),
                f"{row['wall']:.2f}",
                f"{row['per_second']:.0f}",
                f"{data['bound'] / row['wall']:.0%}",
                row["in_flight"],
                f"{row['cpu_us']:.0f}",
            )
            for row in rows
        ],
    )


def of_cpu(data: Data) -> str:
    return _table(
        [
            "",
            "returns",
            "CPU us a text",
            "texts a second",
            "memory MB",
            "connections",
            "server's CPU us a text",
        ],
        [
            (
                _name(row),
                row["gives"],
                f"{row['cpu_us']:.1f}",
                f"{row['per_second']:.0f}",
                f"{row['memory'] / 1e6:.0f}",
                row["connections"],
                f"{row['server_cpu_us']:.1f}",
            )
            for row in data["rows"]
        ],
    )


def of_breakdown(data: Data) -> str:
    return _table(
        ["stage", "CPU us a text"],
        [(name, f"{spent:.1f}") for name, spent in data["stages"].items()],
    )


def of_query(data: Data) -> str:
    return _table(
        ["", "p50 ms", "added to the server's", "p95 ms", "CPU us a query"],
        [
            (
                _name(row),
                f"{row['p50']:.2f}",
                "" if row["floor"] else f"{row['p50'] - data['server_ms']:.2f}",
                f"{row['p95']:.2f}",
                f"{row['cpu_us']:.0f}",
            )
            for row in data["rows"]
        ],
    )


def of_query_https(data: Data) -> str:
    return _table(
        ["", "p50 ms", "p95 ms", "CPU us a query"],
        [
            (_name(row), f"{row['p50']:.2f}", f"{row['p95']:.2f}", f"{row['cpu_us']:.0f}")
            for row in data["https"]
        ],
    )


def of_load(data: Data) -> str:
    return _table(
        ["", "from", "p50 ms", "p99 ms", "CPU us a query"],
        [
            (
                _name(row),
                "one event loop" if row["is_async"] else "32 threads",
                f"{row['p50']:.2f}",
                f"{row['p99']:.2f}",
                f"{row['cpu_us']:.0f}",
            )
            for row in data["rows"]
        ],
    )


def of_bulk(data: Data) -> str:
    return _table(
        ["", "texts", "returns", "seconds", "CPU us a text", "connections"],
        [
            (
                _name(row),
                f"{texts:,}",
                row["gives"],
                f"{row['wall']:.2f}",
                f"{row['cpu_us']:.1f}",
                row["connections"],
            )
            for texts, rows in ((data["texts"], data["rows"]), (data["listed"], data["as_lists"]))
            for row in rows
        ],
    )


def of_answers(data: Data) -> str:
    found = data["found"]

    def cell(name: str, fault: str) -> str:
        one = found[name][fault]
        sent = f"{one['requests']} requests"
        if one["throttled"]:
            sent += f", {one['throttled']} refused, {one['seconds']:.1f} s"
        return f"{one['outcome']} ({sent})"

    return _table(
        ["the server", *(f"**{name}**" if name == "nexusflow" else name for name in found)],
        [(what, *(cell(name, fault) for name in found)) for fault, what in data["faults"].items()],
    )


def of_memory(data: Data) -> str:
    rows = [
        ("texts streamed into an array", data["texts"]),
        ("the array", f"{data['array'] / 1e6:.1f} MB"),
        ("growth of the process", f"{data['growth'] / 1e6:.1f} MB"),
        ("beyond the array", f"{data['beyond_array'] / 1e6:.1f} MB"),
        ("seconds", f"{data['wall']:.2f}"),
        ("CPU us a text", f"{data['cpu_us']:.1f}"),
    ]
    rows += [
        (f"as lists, {name} ({data['listed']} texts)", f"{size / 1e3:.1f} kB a text")
        for name, size in data["lists"].items()
    ]
    return _table(["", ""], rows)


def of_scaling(data: Data) -> str:
    sizes = _table(
        ["", "texts", "seconds", "CPU us a text"],
        [
            (name, point["texts"], f"{point['wall']:.3f}", f"{point['cpu_us']:.1f}")
            for name, points in data["by_size"].items()
            for point in points
        ],
    )
    coalescer = _table(
        ["", "in flight", "reached", "seconds", "share of the bound", "CPU us a request"],
        [
            (
                name,
                point["in_flight"],
                point["reached"],
                f"{point['wall']:.2f}",
                f"{point['bound'] / point['wall']:.0%}",
                f"{point['cpu_us_request']:.0f}",
            )
            for name, points in data["by_flight"].items()
            for point in points
        ],
    )
    fitted = (
        f"Fitted exponent over the texts (`nexusflow`): {data['exponent_cpu']:.2f} of CPU,"
        f" {data['exponent_wall']:.2f} of wall time.\n"
    )
    below = f"{data['flight_texts']} texts at {data['flight_latency_ms']:g} ms:\n"
    return "\n".join([sizes, fitted, below, coalescer])


def of_imports(data: Data) -> str:
    rows = _table(
        ["import", "ms", "CPU ms", "modules", "memory MB"],
        [
            (
                f"`{row['name']}`".replace(", after", "`, after").replace("only`", "only"),
                f"{row['wall_ms']:.0f}",
                f"{row['cpu_ms']:.0f}",
                row["modules"],
                f"{row['memory'] / 1e6:.1f}",
            )
            for row in data["rows"]
        ],
    )
    first = _table(
        ["process start to first vector", "ms", "CPU ms"],
        [(row["name"], f"{row['wall_ms']:.0f}", f"{row['cpu_ms']:.0f}") for row in data["first"]],
    )
    return rows + "\n" + first


def of_https(data: Data) -> str:
    return _table(
        ["", "CPU us a text", "texts a second", "requests", "connections"],
        [
            (
                _name(row),
                f"{row['cpu_us']:.1f}",
                f"{row['per_second']:.0f}",
                row["requests"],
                row["connections"],
            )
            for row in data["rows"]
        ],
    )


_KINDS = {"none": "no store", "misses": "all new", "half": "half known", "hits": "all known"}


def of_store(data: Data) -> str:
    shares = _table(
        ["", "server ms", "seconds", "relative to no store", "CPU us a text"],
        [
            (
                label,
                latency,
                f"{found[kind]['wall']:.3f}",
                f"{found[kind]['wall_share']:.0%}",
                f"{found[kind]['cpu_us']:.0f}",
            )
            for latency, found in data["shares"].items()
            for kind, label in _KINDS.items()
        ],
    )
    beside = _table(
        ["", "put us a vector", "get us a vector", "bytes a vector"],
        [
            (
                f"**{name}**" if name == "nexusflow" else name,
                f"{found['put']['wall'] / data['kept'] * 1e6:.0f}",
                f"{found['get']['wall'] / data['kept'] * 1e6:.0f}",
                f"{found['bytes']:.0f}",
            )
            for name, found in data["beside"].items()
        ],
    )
    kills = _table(
        ["", "sent before the kill", "sent after", "sent twice", "most in flight"],
        [
            (
                f"**{name}**" if name == "nexusflow" else name,
                found["before"],
                found["after"],
                found["twice"],
                found["in_flight"],
            )
            for name, found in data["kills"].items()
        ],
    )
    return "\n".join([shares, beside, kills])


def of_index(data: Data) -> str:
    return _table(
        ["", "seconds", "Chroma's own seconds", "Chroma's share", "CPU seconds"],
        [
            (
                _name(row),
                f"{row['wall']:.1f}",
                f"{row['chroma']:.1f}",
                f"{row['share']:.0%}",
                f"{row['cpu']:.1f}",
            )
            for row in data["rows"]
        ],
    )


def of_soak(data: Data) -> str:
    thrown = ", ".join(f"{name} {count}" for name, count in sorted(data["thrown"].items()))
    rows = [
        ("texts, all with the right vector", data["checked"] - data["wrong"]),
        ("wrong or missing", data["wrong"]),
        ("quota", f"{data['requests_per_second']} requests a second"),
        ("seconds", f"{data['wall']:.1f}"),
        ("share of the quota that became vectors", f"{data['share']:.0%}"),
        ("requests, and retries among them", f"{data['requests']}, {data['retries']}"),
        ("faults injected", sum(data["thrown"].values())),
        (
            "growth of memory in the last three quarters of the run",
            f"{data['growth'] / 1e6:.1f} MB",
        ),
        ("file descriptors in that time", "{} to {}".format(*data["descriptors"])),
    ]
    return _table(["", ""], rows) + f"\nInjected: {thrown}.\n"


def of_targets(cases: Data) -> str:
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, target: str, value: str, verdict: str) -> None:
        rows.append((what, target, value, verdict))

    def find(case: str, name: str) -> Data:
        return next(item for item in cases[case]["rows"] if item["name"] == name)

    def at_most(what: str, target: float, value: float) -> None:
        row(what, f"{target:g}", f"{value:.2f}", _verdict(value, target, at_most=True))

    if "latency" in cases:
        data = cases["latency"]
        slow = min(item["wall"] for item in data["rows"] if item["one_by_one"])
        for item in data["rows"]:
            if not item["ours"]:
                continue
            if "async" not in item["name"]:
                times = slow / item["wall"]
                row(
                    f"150 ms, {item['name']}: faster than the fastest sync framework client",
                    "25 times",
                    f"{times:.1f} times",
                    _verdict(times, 25),
                )
            share = data["bound"] / item["wall"]
            name = f"150 ms, {item['name']}: share of the bound"
            row(name, "95 %", f"{share:.1%}", _verdict(share, 0.95))
        ratio = find("latency", "nexusflow")["cpu_us"] / _best(_arrays(data["rows"]), "cpu_us")
        at_most("CPU a text to arrays at 150 ms, ours / best peer", 1, ratio)
    if "cpu" in cases:
        rows_of = cases["cpu"]["rows"]
        listing = [item for item in rows_of if item["gives"] == "lists"]
        listed = find("cpu", "nexusflow for LangChain")["cpu_us"]
        for name in ("nexusflow", "nexusflow for Chroma"):
            ratio = find("cpu", name)["cpu_us"] / _best(_arrays(rows_of), "cpu_us")
            at_most(f"CPU a text to arrays at 0 ms, {name} / best peer", 1, ratio)
        at_most(
            "CPU a text to lists, ours for LangChain / best peer",
            1,
            listed / _best(listing, "cpu_us"),
        )
        bare = find("cpu", "bare sockets, to lists")["cpu_us"]
        at_most("CPU a text to lists, ours for LangChain / bare sockets", 1.2, listed / bare)
    if "bulk" in cases:
        data = cases["bulk"]
        ours = find("bulk", "nexusflow")
        texts = f"{data['texts']:,} texts at 0 ms"
        for what, figure in (("CPU a text", "cpu_us"), ("seconds", "wall")):
            at_most(
                f"{what}, {texts}, ours / best peer", 1, ours[figure] / _best(data["rows"], figure)
            )
        lists = {item["name"]: item["cpu_us"] for item in data["as_lists"]}
        listed = lists["nexusflow for LangChain"]
        of_lists = f"CPU a text to lists, {data['listed']:,} texts, ours for LangChain"
        at_most(f"{of_lists} / best peer", 1, listed / _best(data["as_lists"], "cpu_us"))
        at_most(f"{of_lists} / bare sockets", 1.2, listed / lists["bare sockets, to lists"])
    if "query" in cases:
        for label, key in (("one query", "rows"), ("one query over TLS", "https")):
            every = cases["query"][key]
            usable = _arrays(every)
            for name, target in (("nexusflow", 1.3), ("nexusflow for LangChain", 1.6)):
                ours = next(item for item in every if item["name"] == name)
                for what, figure in (("p50", "p50"), ("CPU", "cpu_us")):
                    best = _best(usable, figure)
                    at_most(f"{label}, {what}, {name} / best peer", target, ours[figure] / best)
    if "load" in cases:
        data = cases["load"]
        for way, is_async in (("32 threads", False), ("one event loop", True)):
            group = [item for item in data["rows"] if item["is_async"] is is_async]
            ours = next(item for item in group if item["ours"])
            at_most(
                f"{data['rate']:,} queries a second from {way}, CPU, ours / best peer",
                1,
                ours["cpu_us"] / _best(group, "cpu_us"),
            )
    if "memory" in cases:
        beyond = cases["memory"]["beyond_array"] / 1e6
        row(
            f"memory beyond the array, {cases['memory']['texts']} vectors",
            "30 MB",
            f"{beyond:.1f} MB",
            _verdict(beyond, 30, at_most=True),
        )
    if "imports" in cases:
        ours = find("imports", "nexusflow_integrations.langchain")["wall_ms"]
        ratio = ours / find("imports", "langchain_openai")["wall_ms"]
        row(
            "import beyond langchain_core, ours / langchain_openai",
            "0.1",
            f"{ratio:.3f}",
            _verdict(ratio, 0.1, at_most=True),
        )
    if "scaling" in cases:
        exponent = cases["scaling"]["exponent_cpu"]
        row(
            "exponent of CPU over texts",
            "1.0",
            f"{exponent:.2f}",
            _verdict(exponent, 1.05, at_most=True),
        )
        ours = cases["scaling"]["by_flight"]["nexusflow"]
        costs = {point["in_flight"]: point["cpu_us_request"] for point in ours}
        ratio = costs[128] / costs[8]
        row(
            "CPU a request, 128 in flight / 8 in flight",
            "1.0",
            f"{ratio:.2f}",
            _verdict(ratio, 1.1, at_most=True),
        )
    return _table(["what", "target", "measured", "reached"], rows)


def of_machine(machine: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']},"
        f" Python {machine['python']}; {versions}.\n"
    )


_TABLES: dict[str, Callable[[Data], str]] = {
    "latency": of_latency,
    "cpu": of_cpu,
    "breakdown": of_breakdown,
    "query": of_query,
    "load": of_load,
    "bulk": of_bulk,
    "answers": of_answers,
    "memory": of_memory,
    "scaling": of_scaling,
    "imports": of_imports,
    "https": of_https,
    "store": of_store,
    "index": of_index,
    "soak": of_soak,
}


def tables(results: Data) -> dict[str, str]:
    """Return the Markdown of everything in ``results``, by the name of its marker."""
    cases = results["cases"]
    made = {"machine": of_machine(results["machine"]), "targets": of_targets(cases)}
    for name, table in _TABLES.items():
        if name in cases:
            made[name] = table(cases[name])
    if "query" in cases:
        made["query_https"] = of_query_https(cases["query"])
    seconds = sum(case["seconds"] for case in cases.values())
    checked = sum(case.get("checked", 0) + _checked_rows(case) for case in cases.values())
    busy = [
        row["others"] for case in cases.values() for row in case.get("rows", ()) if "others" in row
    ]
    made["run"] = (
        f"{seconds / 60:.1f} minutes, {checked:,} vectors checked. Other processes kept"
        f" {sum(busy) / max(1, len(busy)):.2f} cores busy on average and"
        f" {max(busy, default=0):.2f} at most"
        + (". This run had real-time priority" if results["machine"].get("realtime") else "")
        + ".\n"
    )
    return made


def _checked_rows(case: Data) -> int:
    groups = [case.get("rows", []), case.get("https", []), case.get("as_lists", [])]
    groups += case.get("by_size", {}).values()
    groups += case.get("by_flight", {}).values()
    return sum(row.get("checked", 0) for rows in groups for row in rows)


def fill(page: str, made: dict[str, str]) -> str:
    """Put each table between its markers ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        page = pattern.sub(lambda match: f"{match[1]}{table}{match[2]}", page)  # noqa: B023
    return page
