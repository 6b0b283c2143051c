"""The benchmark cases: each runs child processes against a server and returns plain data.

``quick`` uses fewer texts and rounds.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contestants import ALL, BY_NAME, FLOORS, IN_FLIGHT
from harness import (
    HERE,
    PATIENCE,
    Server,
    interleaved,
    measure,
    median,
    running,
    server,
    start,
    together,
)
from index_tasks import WAYS

Data = dict[str, Any]
LATENCY_MS = 150.0
DIMENSIONS = 1024


def bound(texts: int, latency_ms: float, in_flight: int = IN_FLIGHT) -> float:
    """The minimum seconds for any client with this many requests in flight."""
    return math.ceil(math.ceil(texts / 10) / in_flight) * latency_ms / 1000


def _rows(found: dict[str, list[Data]], texts: int) -> list[Data]:
    rows = []
    for name, runs in found.items():
        wall = median(runs, "wall")
        rows.append(
            {
                "name": name,
                "ours": BY_NAME[name].ours,
                "floor": BY_NAME[name] in FLOORS,
                "gives": BY_NAME[name].gives,
                "one_by_one": BY_NAME[name].one_by_one,
                "rounds": len(runs),
                "wall": wall,
                "walls": [run["wall"] for run in runs],
                "per_second": texts / wall,
                "cpu_us": median(runs, "cpu") / texts * 1e6,
                "cpus_us": [run["cpu"] / texts * 1e6 for run in runs],
                "memory": median(runs, "memory"),
                "server_cpu_us": statistics.median(r["server"]["cpu_seconds"] for r in runs)
                / texts
                * 1e6,
                "in_flight": max(run["server"]["max_in_flight"] for run in runs),
                "connections": max(run["server"]["connections"] for run in runs),
                "others": statistics.median(run.get("others", 0.0) for run in runs),
                "checked": sum(run["checked"] for run in runs),
            }
        )
    return rows


def _documents(name: str, texts: int, **settings: Any) -> Data:
    return {"task": "documents", "contestant": name, "texts": texts, "settings": settings}


def latency(quick: bool) -> Data:
    """2,000 texts at 150 ms, all clients with defaults."""
    texts, rounds = (200, 1) if quick else (2000, 6)
    with server(LATENCY_MS) as at:
        fast = {
            contestant.name: _documents(contestant.name, texts)
            for contestant in ALL
            if not contestant.one_by_one
        }
        found = interleaved(fast, rounds, at)
        # Half a minute each, nearly all of it latency: one run is enough.
    # All in parallel, each with its own server: they mostly wait, using 1 % of a core.
    slow = {c.name: _documents(c.name, texts) for c in ALL if c.one_by_one}
    found |= together(slow, LATENCY_MS)
    return {
        "texts": texts,
        "latency_ms": LATENCY_MS,
        "bound": bound(texts, LATENCY_MS),
        "quotient": texts / 10 / IN_FLIGHT * LATENCY_MS / 1000,
        "rows": _rows({c.name: found[c.name] for c in ALL}, texts),
    }


def cpu(quick: bool) -> Data:
    """2,000 texts at 0 ms: the cost of the client."""
    texts, rounds = (500, 1) if quick else (2000, 5)
    with server() as at:
        specs = {c.name: _documents(c.name, texts) for c in [*ALL, *FLOORS]}
        found = interleaved(specs, rounds, at)
    return {"texts": texts, "rows": _rows(found, texts)}


def breakdown(quick: bool) -> Data:
    """The client's CPU time by stage."""
    texts, rounds = (500, 1) if quick else (2000, 5)
    with server() as at:
        runs = [measure({"task": "breakdown", "texts": texts}, at) for _ in range(rounds)]
    return {
        "texts": texts,
        "stages": {
            name: statistics.median(run["stages"][name] for run in runs)
            for name in runs[0]["stages"]
        },
        "checked": sum(run["checked"] for run in runs),
    }


RUST = "Rust client, decoded and checked"
RUST_LISTS = "Rust client, decoded, checked, to lists"
RUST_ASYNC = "Rust client, async, decoded and checked"


def query(quick: bool) -> Data:
    """One query after another at 0 ms: the time that the client adds."""
    names = [
        "nexusflow",
        "nexusflow for LangChain",
        "nexusflow for LlamaIndex",
        "nexusflow for Chroma",
        "nexusflow, async",
        "LangChain OpenAIEmbeddings",
        "LlamaIndex OpenAILikeEmbedding",
        "Chroma OpenAIEmbeddingFunction, tens",
        "openai, sequential",
        "openai, async, 32",
        "openai, async, 32, its aiohttp client",
        "Rust client",
        RUST,
        RUST_ASYNC,
        "bare sockets",
    ]
    queries, rounds = (60, 1) if quick else (400, 5)
    with server() as at:
        found = interleaved(_queries(names, queries), rounds, at)
    rows = _query_rows(found, queries)
    server_ms = median(found["bare sockets"], "p50")
    with _tls_server() as (at, trusted):
        names = ["nexusflow", "nexusflow for LangChain", RUST, RUST_ASYNC]
        found = interleaved(_queries(names, queries), rounds, at, SSL_CERT_FILE=trusted)
    return {
        "queries": queries,
        "server_ms": server_ms,
        "rows": rows,
        "https": _query_rows(found, queries),
    }


def _queries(names: list[str], queries: int) -> dict[str, Data]:
    return {name: {"task": "query", "contestant": name, "queries": queries} for name in names}


def _query_rows(found: dict[str, list[Data]], queries: int) -> list[Data]:
    return [
        {
            "name": name,
            "ours": BY_NAME[name].ours,
            "floor": BY_NAME[name] in FLOORS,
            "gives": BY_NAME[name].gives,
            "p50": median(runs, "p50"),
            "p95": median(runs, "p95"),
            "cpu_us": median(runs, "cpu") / queries * 1e6,
            "checked": sum(run["checked"] for run in runs),
            "others": statistics.median(run.get("others", 0.0) for run in runs),
        }
        for name, runs in found.items()
    ]


def load(quick: bool) -> Data:
    """1,000 queries a second, from 32 threads and from one event loop."""
    rate, seconds, rounds = 1000, 1 if quick else 5, 1 if quick else 3
    names = ["nexusflow", RUST, "nexusflow, async", RUST_ASYNC]
    spec = {"task": "load", "rate": rate, "seconds": seconds}
    with server() as at:
        found = interleaved({name: spec | {"contestant": name} for name in names}, rounds, at)
    rows = [
        {
            "name": name,
            "ours": BY_NAME[name].ours,
            "floor": False,
            "is_async": BY_NAME[name].is_async,
            "p50": median(runs, "p50"),
            "p99": median(runs, "p99"),
            "cpu_us": median(runs, "cpu") / (rate * seconds) * 1e6,
            "checked": sum(run["checked"] for run in runs),
            "others": statistics.median(run.get("others", 0.0) for run in runs),
        }
        for name, runs in found.items()
    ]
    return {"rate": rate, "rows": rows}


def bulk(quick: bool) -> Data:
    """40,000 texts in one call at 0 ms as arrays, and 10,000 as lists."""
    texts, listed, rounds = (4000, 1000, 1) if quick else (40_000, 10_000, 3)
    arrays = ["nexusflow", RUST, "bare sockets"]
    lists = ["nexusflow for LangChain", RUST_LISTS, "bare sockets, to lists"]
    with server() as at:
        found = interleaved({name: _documents(name, texts) for name in arrays}, rounds, at)
        also = interleaved({name: _documents(name, listed) for name in lists}, rounds, at)
    return {
        "texts": texts,
        "rows": _rows(found, texts),
        "listed": listed,
        "as_lists": _rows(also, listed),
    }


def answers(quick: bool) -> Data:
    """What ours and the fastest peer return for five bad answers."""
    from answer_tasks import CLIENTS, FAULTS

    return {
        "faults": FAULTS,
        "found": {name: measure({"task": "answers", "client": name}) for name in CLIENTS},
    }


def memory(quick: bool) -> Data:
    """100,000 vectors streamed into an array, and lists for comparison."""
    texts, listed = (5000, 2000) if quick else (100_000, 10_000)
    with server() as at:
        streamed = measure({"task": "stream", "texts": texts}, at)
        lists = {
            name: measure(_documents(name, listed), at)
            for name in ("nexusflow for LangChain", "LangChain OpenAIEmbeddings")
        }
    return {
        "texts": texts,
        "array": streamed["array"],
        "growth": streamed["memory"],
        "beyond_array": streamed["memory"] - streamed["array"],
        "wall": streamed["wall"],
        "cpu_us": streamed["cpu"] / texts * 1e6,
        "checked": streamed["checked"] + sum(run["checked"] for run in lists.values()),
        "listed": listed,
        "lists": {name: run["memory"] / listed for name, run in lists.items()},
    }


def _exponent(sizes: list[int], costs: list[float]) -> float:
    """Fit ``cost ~ size ** exponent`` by least squares on the logarithms."""
    slope, _ = statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    )
    return slope


def scaling(quick: bool) -> Data:
    """More texts, and more requests in flight."""
    sizes = [200, 1000, 5000] if quick else [1000, 10_000, 100_000]
    rounds = 1 if quick else 3
    by_size: dict[str, list[Data]] = {}
    with server() as at:
        for name in ("nexusflow", "nexusflow for LangChain"):
            points = []
            for size in sizes if name == "nexusflow" else sizes[:2]:
                times = 1 if size > 50_000 else rounds
                runs = [measure(_documents(name, size), at) for _ in range(times)]
                points.append(
                    {
                        "texts": size,
                        "wall": median(runs, "wall"),
                        "cpu_us": median(runs, "cpu") / size * 1e6,
                        "checked": sum(run["checked"] for run in runs),
                    }
                )
            by_size[name] = points
    core = by_size["nexusflow"]
    texts = 500 if quick else 3000
    contestants = ("nexusflow", "openai, async, 32")
    by_flight: dict[str, list[Data]] = {name.removesuffix(", 32"): [] for name in contestants}
    rounds = min(rounds, 2)
    with server(10.0) as at:
        for in_flight in (1, 8, 32, 128):
            # A warm-up opens all connections, so that opening them is not measured.
            specs = {
                name: _documents(name, texts, max_concurrency=in_flight)
                | {"before": 40 * in_flight}
                for name in contestants
            }
            for name, runs in interleaved(specs, rounds, at).items():
                by_flight[name.removesuffix(", 32")].append(
                    {
                        "in_flight": in_flight,
                        "reached": max(run["server"]["max_in_flight"] for run in runs),
                        "wall": median(runs, "wall"),
                        "bound": bound(texts, 10.0, in_flight),
                        "cpu_us_request": median(runs, "cpu") / (texts / 10) * 1e6,
                        "checked": sum(run["checked"] for run in runs),
                    }
                )
    return {
        "by_size": by_size,
        "exponent_wall": _exponent(sizes, [point["wall"] for point in core]),
        "exponent_cpu": _exponent(sizes, [point["cpu_us"] * point["texts"] for point in core]),
        "flight_texts": texts,
        "flight_latency_ms": 10.0,
        "by_flight": by_flight,
    }


_NEEDED = [
    "langchain_core.embeddings",
    "langchain_core.exceptions",
    "langchain_core.load.serializable",
    "langchain_core.rate_limiters",
]


def imports(quick: bool) -> Data:
    """The cost of imports, and the time from process start to the first vector."""
    rounds = 1 if quick else 2
    of_langchain = _langchain_core_of("nexusflow_integrations.langchain")

    def spec(modules: list[str], after: list[str]) -> Data:
        return {"task": "imports", "modules": modules, "after": after}

    chroma, llama = "chromadb", "llama_index.core.base.embeddings.base"
    specs = {
        "langchain_core.embeddings": spec(["langchain_core.embeddings"], []),
        "nexusflow_integrations.langchain": spec(
            ["nexusflow_integrations.langchain"], of_langchain
        ),
        "langchain_openai": spec(["langchain_openai"], of_langchain),
        "nexusflow_integrations.langchain, after langchain_core.embeddings only": spec(
            ["nexusflow_integrations.langchain"], _NEEDED[:1]
        ),
        "langchain_openai, after langchain_core.embeddings only": spec(
            ["langchain_openai"], _NEEDED[:1]
        ),
        "nexusflow_integrations.llama_index": spec(["nexusflow_integrations.llama_index"], [llama]),
        "llama_index.embeddings.openai_like": spec(["llama_index.embeddings.openai_like"], [llama]),
        "nexusflow_integrations.chroma": spec(["nexusflow_integrations.chroma"], [chroma]),
        "openai": spec(["openai"], [chroma]),
    }
    found = interleaved(specs, rounds)
    firsts = ["nexusflow", "openai, sequential", "nexusflow for LangChain"]
    firsts.append("LangChain OpenAIEmbeddings")
    with server() as at:
        first = interleaved(
            {name: {"task": "first_answer", "contestant": name} for name in firsts}, rounds, at
        )
    return {
        "rows": [
            {
                "name": name,
                "wall_ms": median(runs, "wall") * 1e3,
                "cpu_ms": median(runs, "cpu") * 1e3,
                "modules": runs[0]["modules"],
                "memory": median(runs, "memory"),
            }
            for name, runs in found.items()
        ],
        "first": [
            {
                "name": name,
                "wall_ms": median(runs, "wall") * 1e3,
                "cpu_ms": median(runs, "cpu") * 1e3,
            }
            for name, runs in first.items()
        ],
        "checked": sum(run["checked"] for runs in first.values() for run in runs),
    }


def _langchain_core_of(module: str) -> list[str]:
    """Return the parts of langchain_core that ``module`` imports, which are not our cost."""
    import subprocess

    listing = (
        f"import sys; sys.path.insert(0, {str(HERE.parents[1])!r}); import {module};"
        "print(*(name for name in sys.modules if name.startswith('langchain_core')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True, timeout=60
    )
    return ["langchain_core.embeddings", *sorted(done.stdout.split())]


def https(quick: bool) -> Data:
    """2,000 texts over https on loopback, and how many connections that took."""
    texts, rounds = (500, 1) if quick else (2000, 3)
    names = (
        "nexusflow",
        "nexusflow for LangChain",
        "openai, sequential",
        "openai, async, 32, its aiohttp client",
        RUST,
        RUST_LISTS,
    )
    with _tls_server() as (at, trusted):
        specs = {name: _documents(name, texts) for name in names}
        found = interleaved(specs, rounds, at, SSL_CERT_FILE=trusted)
    rows = _rows(found, texts)
    for row in rows:
        row["requests"] = math.ceil(texts / 10) + 2
    return {"texts": texts, "rows": rows}


@contextmanager
def _tls_server() -> Iterator[tuple[Server, str]]:
    """Serve https; also gives the file with the certificate to trust."""
    import trustme

    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        trusted, certificate = Path(folder) / "ca.pem", Path(folder) / "server.pem"
        authority.cert_pem.write_to_path(trusted)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        with server(certificate=certificate) as at:
            yield at, str(trusted)


@contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def store(quick: bool) -> Data:
    """The cache: its share of a run, compared with other caches, and the cost of a kill -9."""
    texts, kept, killed = (300, 300, 400) if quick else (2000, 20_000, 1000)
    rounds = 1 if quick else 2
    shares = {}
    for latency_ms in (0.0, LATENCY_MS):
        runs = []
        with server(latency_ms) as at:
            for _ in range(rounds):
                with _folder() as folder:
                    spec = {"task": "store_share", "texts": texts, "folder": folder}
                    runs.append(measure(spec, at))
        shares[f"{latency_ms:g}"] = {
            kind: {
                "wall": statistics.median(run[kind]["wall"] for run in runs),
                "cpu_us": statistics.median(run[kind]["cpu"] for run in runs) / texts * 1e6,
                "wall_share": statistics.median(
                    run[kind]["wall"] / run["none"]["wall"] for run in runs
                ),
            }
            for kind in ("none", "misses", "half", "hits")
        }
        checked = sum(run["checked"] for run in runs)
    beside = {}
    for cache in ("nexusflow", "CacheBackedEmbeddings", "embeddings_cache"):
        with _folder() as folder:
            spec = {"task": "store_put_and_get", "cache": cache, "texts": kept, "folder": folder}
            beside[cache] = measure(spec)
            checked += beside[cache]["checked"]
    kills = {}
    with server(20.0) as at:
        for cache in (
            "nexusflow",
            "CacheBackedEmbeddings, batch_size=10",
            "CacheBackedEmbeddings",
            "embeddings_cache",
        ):
            kills[cache] = _kill_half_way(cache, killed, at)
    return {
        "texts": texts,
        "shares": shares,
        "kept": kept,
        "beside": beside,
        "killed": killed,
        "kills": kills,
        "checked": checked,
    }


def _kill_half_way(cache: str, texts: int, at: Server) -> Data:
    """Kill -9 once half of the texts are answered; run again; count what was paid for twice."""
    with _folder() as folder:
        spec = {"task": "store_until_killed", "cache": cache, "texts": texts, "folder": folder}
        at.stats(reset=True)
        process = start({**spec, "url": at.url})
        until = time.monotonic() + PATIENCE
        while at.stats()["texts"] < texts // 2 and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{cache} ended before it could be killed")
        time.sleep(0.1)
        at_kill = at.stats()
        served = at_kill["texts"]
        again = measure(spec, at)
        paid = again["server"]["texts"]
    in_flight = 10 * at_kill["max_in_flight"]
    return {
        "before": served,
        "after": paid,
        "twice": served + paid - texts,
        "in_flight": in_flight,
    }


def index(quick: bool) -> Data:
    """Documents into a Chroma on disk through each framework, at 20 ms."""
    texts = 500 if quick else 10_000
    latency_ms = 20.0
    rows = []
    with server(latency_ms) as at:
        for way in WAYS:
            with _folder() as folder:
                spec = {"task": "index", "way": way, "texts": texts, "folder": folder}
                run = measure(spec, at)
            rows.append(
                {
                    "name": way,
                    "ours": way.startswith("nexusflow"),
                    "wall": run["wall"],
                    "cpu": run["cpu"],
                    "chroma": run["chroma"],
                    "share": run["chroma"] / run["wall"],
                    "checked": run["checked"],
                    "others": run.get("others", 0.0),
                }
            )
    return {"texts": texts, "latency_ms": latency_ms, "rows": rows}


def soak(quick: bool) -> Data:
    """20,000 texts with a quota, and faults in one request of twenty."""
    texts, per_second = (1000, 60) if quick else (20_000, 60)
    with running([sys.executable, str(HERE / "soak_server.py"), str(per_second)]) as (
        process,
        ready,
    ):
        url = f"http://127.0.0.1:{ready['port']}/v1"
        run = measure({"task": "soak", "texts": texts, "url": url})
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        seen = json.loads(process.stdout.readline())
    if run["wrong"]:
        raise RuntimeError(f"{run['wrong']} of {texts} vectors were not right")
    ideal = texts / 10 / per_second
    return {
        "texts": texts,
        "requests_per_second": per_second,
        "ideal": ideal,
        "share": ideal / run["wall"],
        **{k: v for k, v in run.items() if k != "busy"},
        "server_saw": seen["requests"],
        "thrown": seen["thrown"],
    }


def ratios(quick: bool) -> Data:
    """A few ratios for CI: the best of several interleaved rounds."""
    texts, rounds = 500, 4
    names = ("nexusflow", "nexusflow for LangChain", "openai, sequential")
    with server() as at:
        found = interleaved({name: _documents(name, texts) for name in names}, rounds, at)
    cost = {name: min(run["cpu"] for run in runs) for name, runs in found.items()}
    with server(50.0) as at:
        waits = interleaved({name: _documents(name, texts) for name in names}, 2, at)
    with server() as at:
        streamed = measure({"task": "stream", "texts": 5000}, at)
    return {
        "cpu_lists": cost["openai, sequential"] / cost["nexusflow for LangChain"],
        "cpu_arrays": cost["openai, sequential"] / cost["nexusflow"],
        "in_flight": max(run["server"]["max_in_flight"] for run in waits["nexusflow"]),
        "connections": max(run["server"]["connections"] for run in found["nexusflow"]),
        "beyond_array": streamed["memory"] - streamed["array"],
        "checked": streamed["checked"]
        + sum(run["checked"] for runs in [*found.values(), *waits.values()] for run in runs),
    }


CASES: dict[str, Callable[[bool], Data]] = {
    "latency": latency,
    "cpu": cpu,
    "breakdown": breakdown,
    "query": query,
    "load": load,
    "bulk": bulk,
    "answers": answers,
    "memory": memory,
    "scaling": scaling,
    "imports": imports,
    "https": https,
    "store": store,
    "index": index,
    "soak": soak,
}
ON_REQUEST: dict[str, Callable[[bool], Data]] = {"ratios": ratios}
