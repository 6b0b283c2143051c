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
import pyarrow as pa
import pyarrow.dataset
import ray.data
from ray.data import SaveMode

from nexusflow_integrations import Budget
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import open_collection
from nexusflow_integrations.cli.first_bytes import not_text
from nexusflow_integrations.cli.rag.passages import cut
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.ray import ClusterLimits, EmbedBatch

CHROMA = "from chromadb.cli.cli import app; app()"


def hashed(source, text):
    """Return an id that is the same in every run."""
    return hashlib.sha256(f"{source}\n{text}".encode()).hexdigest()[:24]


def passages(file):
    """Split one file; ids are derived from position and content."""
    seen = set()
    for line, passage in cut(file["bytes"].decode("utf-8-sig")):
        source = f"{file['path']}:{line}"
        name = hashed(source, passage)
        if name not in seen:  # a long line may be cut into equal pieces
            seen.add(name)
            yield {"id": name, "text": passage, "source": source}


class AddToChroma:
    """Upserts the rows that have a vector, and returns all rows."""

    def __init__(self, host, port, collection):
        client = chromadb.HttpClient(host=host, port=port)
        self.collection = client.get_collection(collection, embedding_function=None)

    def __call__(self, table):
        embedded = [row for row in table.to_pylist() if row["embedding"] is not None]
        # Rows of one text and source have one id; Chroma refuses a call that repeats an id.
        rows = {row["id"]: row for row in embedded}.values()
        if rows:
            self.collection.upsert(
                ids=[row["id"] for row in rows],
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


class SourceError(Exception):
    """The source cannot be read as a whole; the message is one sentence."""


def checked(source, text):
    """Return the paths to read, and name the files that are left out."""
    if not source.exists():
        raise SourceError(f"there is no file or folder {str(source)!r}")
    if source.suffix == ".parquet":
        check_columns(source, text)
        return [str(source)]
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [file for file in files if file.suffix in (".txt", ".md") and file.is_file()]
    readable = [str(file) for file in files if is_text(file)]
    if not readable:
        raise SourceError(f"{str(source)!r} holds no .txt or .md file that is UTF-8")
    return readable


def is_text(file):
    """Return whether a file is UTF-8; name it if it is not."""
    data = file.read_bytes()
    reason = not_text(data)
    try:
        data.decode()
    except UnicodeDecodeError:
        reason = reason or "not UTF-8"
    if reason:
        print(f"left out: {file}: {reason}", file=sys.stderr)
    return not reason


def check_columns(source, text):
    """Check that there is a column of texts, and that no two rows have the same id."""
    try:
        table = pyarrow.dataset.dataset(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{str(source)!r} cannot be read: {error}") from None
    names = table.schema.names
    if text not in names:
        raise SourceError(f"--text {text}: the columns of {source.name!r} are {', '.join(names)}")
    if "id" in names:
        ids = table.to_table(columns=["id"])["id"].drop_null()
        if len(ids.unique()) < len(ids):
            raise SourceError(f"several rows of {source.name!r} have the same id")


def read(source, paths, text):
    """Return a dataset of id, text and source."""
    if source.suffix != ".parquet":
        return ray.data.read_binary_files(paths, include_paths=True).flat_map(passages)

    def named(row):
        name, origin = row.get("id"), row.get("source")
        name = hashed(origin or "", row[text]) if name in (None, "") else str(name)
        return {"id": name, "text": row[text], "source": str(origin or source.name)}

    return ray.data.read_parquet(paths).map(named)


def chroma_address(text):
    """Return the host and the port of ``host:port``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port, such as localhost:8000")
    return host, int(port)


def local_server(port):
    """Return the local server, on another port if this one is taken."""
    with socket.socket() as tried:
        taken = port and not tried.connect_ex(("127.0.0.1", port))
    if taken:
        print(f"port {port} is taken: the local server uses another one", file=sys.stderr)
    return LocalServer(port=0 if taken else port)


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
    parser.add_argument(
        "--chroma", type=chroma_address, help="host:port of a Chroma server; default: starts one"
    )
    parser.add_argument("--collection", default="corpus")
    parser.add_argument("--port", type=int, default=8798, help="port of the local server")
    settings = parser.parse_args(arguments)
    try:
        paths = checked(settings.source, settings.text)
    except SourceError as error:
        parser.error(str(error))
    out = settings.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        local = None
        if not os.getenv("NEXUSFLOW_API_KEY"):
            local = stack.enter_context(local_server(settings.port))
            os.environ["NEXUSFLOW_API_KEY"] = (
                local.api_key
            )  # before Ray starts, so that workers inherit it
            os.environ["NEXUSFLOW_BASE_URL"] = local.base_url
        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=300_000_000)
        server = chroma_server(out / "chroma")
        if settings.chroma:
            server = nullcontext(settings.chroma)
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
        read(settings.source, paths, settings.text).map_batches(
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
