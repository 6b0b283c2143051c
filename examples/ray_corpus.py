# /// script
# requires-python = ">=3.10"
# dependencies = ["nexusflow-integrations[ray,chroma,local]"]
# ///
"""Embed a corpus with Ray Data, and write it to Parquet and a Chroma server.

    python ray_corpus.py notes/                            # text and Markdown files, split
    python ray_corpus.py passages.parquet --text body      # or a column of Parquet, not split
    python ray_corpus.py notes/ --requests-per-minute 1800 --tokens-per-minute 1000000
    python ray_corpus.py notes/ --chroma chroma.example.org:8000 --cache redis://cache.example.org

You can interrupt it, because every vector is cached as it arrives. If the driver or a worker is
killed, run the same command again: it writes all rows again and pays only for unfinished texts.
Uses the service if NEXUSFLOW_API_KEY is set, otherwise a small local model.
"""

import argparse
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # one host: only 127.0.0.1
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # Chroma before 1.5.3

import chromadb
import ray.data
from ray.data import SaveMode

from nexusflow_integrations import Budget
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection
from nexusflow_integrations.cli.rag.passages import cut
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.ray import ClusterLimits, EmbedBatch

CHROMA = "from chromadb.cli.cli import app; app()"


def passages(file):
    """Split one file; ids are derived from position and content, the same in every run."""
    text = file["bytes"].decode("utf-8-sig", errors="replace")
    for line, passage in cut(text):
        source = f"{file['path']}:{line}"
        name = hashlib.sha256(f"{source}\n{passage}".encode()).hexdigest()[:24]
        yield {"id": name, "text": passage, "source": source}


class AddToChroma:
    """Upserts the rows that have a vector, and returns all rows."""

    def __init__(self, host, port, collection):
        client = chromadb.HttpClient(host=host, port=port)
        self.collection = client.get_collection(collection, embedding_function=None)

    def __call__(self, table):
        rows = [row for row in table.to_pylist() if row["embedding"] is not None]
        if rows:
            self.collection.upsert(
                ids=[str(row["id"]) for row in rows],
                embeddings=[row["embedding"] for row in rows],
                documents=[row["text"] for row in rows],
                metadatas=[{"source": row["source"]} for row in rows],
            )
        return table


@contextmanager
def chroma_server(folder):
    """Run ``chroma run``, and end it with this process, even if this one is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-c", CHROMA, "run", "--port", str(port), "--path", str(folder)]
    # The shell reads from a pipe that is closed when this process ends.
    script = f"{shlex.join(run)} >/dev/null & server=$!; read line; kill $server; wait $server"
    shell = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 300
        with ExitStack() as stack:
            while stack.enter_context(socket.socket()).connect_ex(("127.0.0.1", port)):
                if time.monotonic() > until:
                    raise TimeoutError("chroma run did not open its port")
                time.sleep(0.2)
        yield "127.0.0.1", port
    finally:
        shell.stdin.close()
        shell.wait()


def read(source, text):
    """Return a dataset of id, text and source."""
    if source.suffix != ".parquet":
        files = [str(path) for path in sorted(source.rglob("*")) if path.suffix in (".txt", ".md")]
        return ray.data.read_binary_files(files, include_paths=True).flat_map(passages)

    def named(row):
        name = row.get("id") or hashlib.sha256(row[text].encode()).hexdigest()[:24]
        return {"id": str(name), "text": row[text], "source": str(row.get("source") or source.name)}

    return ray.data.read_parquet(str(source)).map(named)


def main(arguments=None):
    """Embed and write; return the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of text files, or a Parquet file")
    parser.add_argument("--out", type=Path, default=Path("ray-corpus"))
    parser.add_argument("--text", default="text", help="the column of a Parquet file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--max-concurrency", type=int, default=32)
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--tokens-per-minute", type=float)
    parser.add_argument("--budget-tokens", type=int)
    parser.add_argument("--cache", help="a file, or redis://... for several hosts")
    parser.add_argument("--chroma", help="host:port of a Chroma server; default: starts one")
    parser.add_argument("--collection", default="corpus")
    parser.add_argument("--port", type=int, default=8765, help="port of the local server")
    settings = parser.parse_args(arguments)
    out = settings.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        local = None
        if not os.getenv("NEXUSFLOW_API_KEY"):
            local = stack.enter_context(LocalServer(port=settings.port))
            os.environ["NEXUSFLOW_API_KEY"] = (
                local.api_key
            )  # before Ray starts, so that workers inherit it
            os.environ["NEXUSFLOW_BASE_URL"] = local.base_url
        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=300_000_000)
        server = chroma_server(out / "chroma")
        if settings.chroma:
            host, _, port = settings.chroma.rpartition(":")
            server = nullcontext((host, int(port)))
        host, port = stack.enter_context(server)
        collection = open_collection(
            chromadb.HttpClient(host=host, port=port),
            settings.collection,
            NexusFlowEmbeddingFunction(dimensions=settings.dimensions),
        )
        limits = ClusterLimits(
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            budget=Budget(tokens=settings.budget_tokens) if settings.budget_tokens else None,
        ).start()
        pool = {"compute": ray.data.ActorPoolStrategy(size=settings.workers), "num_cpus": 0.25}
        # One actor writes to Chroma while the others embed; finished blocks are passed on.
        alone = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.25}
        read(settings.source, settings.text).map_batches(
            EmbedBatch,
            fn_constructor_kwargs={
                "limits": limits,
                "dimensions": settings.dimensions,
                "cache": settings.cache or str(out / "vectors.db"),
                "max_concurrency": settings.max_concurrency,
            },
            batch_size=250,
            batch_format="pyarrow",
            **pool,
        ).map_batches(
            AddToChroma,
            fn_constructor_args=(host, port, settings.collection),
            batch_size=250,
            batch_format="pyarrow",
            **alone,
        ).write_parquet(str(out / "parquet"), mode=SaveMode.OVERWRITE)
        written = ray.data.read_parquet(str(out / "parquet"))
        missing = written.filter(lambda row: row["embedding_error"] is not None).count()
        done = {"rows": written.count(), "without_vector": missing, "in_chroma": collection.count()}
    print(f"{done['rows']} rows in {out / 'parquet'}, {done['in_chroma']} in Chroma,", end=" ")
    print(f"{done['without_vector']} without a vector")
    return done


if __name__ == "__main__":
    main()
