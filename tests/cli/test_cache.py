"""``nexusflow cache`` shows and removes what it should, and leaves other files alone."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.usage import Price
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.options import budget, seconds, size
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.local import LocalServer

from .conftest import KEY, Command

pytestmark = pytest.mark.timeout(600)

TEXTS = [f"text number {number}" for number in range(600)]


@pytest.fixture
def file(service: LocalServer, tmp_path: Path) -> Path:
    """A cache with 600 vectors of one size and 4 of another, of which 3 were found once."""
    path = tmp_path / "vectors.sqlite3"
    NexusFlow(dimensions=64, cache=path).embed(TEXTS)
    large = NexusFlow(dimensions=256, cache=path)
    large.embed(TEXTS[:3])
    large.embed(TEXTS[:3])
    large.embed("one more")  # what was found is noted down with the next write
    return path


def test_info_shows_size_models_and_hit_rate(nexusflow: Command, file: Path) -> None:
    found = nexusflow.json("cache", "info", "--cache", str(file))
    assert found["vectors"] == 604
    assert found["bytes"] >= 600 * 64 * 4
    assert [(row["dimensions"], row["vectors"]) for row in found["models"]] == [(64, 600), (256, 4)]
    assert (found["hits"], found["misses"]) == (3, 604)
    assert found["hit_rate"] == round(3 / 607, 4)
    shown, _ = nexusflow("cache", "info", "--cache", str(file))
    assert "604 vectors" in shown
    assert "0.5% of 607 texts" in shown
    assert "text-embedding-v4" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_cache_on_a_server_is_shown_pruned_and_emptied(
    nexusflow: Command, redis_server: Any, service: LocalServer, tmp_path: Path
) -> None:
    url = redis_server.url
    NexusFlow(dimensions=64, cache=url).embed(TEXTS[:30])
    found = nexusflow.json("cache", "info", "--cache", url)
    assert found["path"] == url
    assert [(row["dimensions"], row["vectors"]) for row in found["models"]] == [(64, 30)]
    shown, _ = nexusflow("cache", "info", "--cache", url)
    assert url in shown
    assert "30 vectors" in shown
    kept, _ = nexusflow("cache", "prune", "--older-than", "30d", "--cache", url)
    assert kept.startswith("Removed 0 vectors")
    nexusflow("cache", "clear", "--yes", "--cache", url)
    assert nexusflow.json("cache", "info", "--cache", url)["vectors"] == 0
    source = tmp_path / "lines.txt"
    source.write_text("one\ntwo\n")
    for cached in (0, 2):
        done = nexusflow.json(
            "embed", str(source), "-o", str(tmp_path / f"{cached}.jsonl"), "--cache", url
        )
        assert done["cost"]["cached"] == cached


def test_info_creates_no_cache_file(nexusflow: Command, tmp_path: Path) -> None:
    shown, _ = nexusflow("cache", "info")
    assert "nothing cached yet" in shown
    assert not (tmp_path / "cache").exists()


def test_info_names_the_embedded_model(nexusflow: Command, file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE kind SET base_url = 'http://minilm.embedded.localhost/v1'")
    db.close()
    found = nexusflow.json("cache", "info", "--cache", str(file))
    assert {row["embedded_model"] for row in found["models"]} == {"minilm"}
    shown, _ = nexusflow("cache", "info", "--cache", str(file))
    assert "minilm " in shown
    assert "text-embedding-v4" not in shown
    assert "localhost" not in shown


def test_clearing_an_empty_cache_needs_no_confirmation(nexusflow: Command) -> None:
    assert nexusflow("cache", "clear")[0].startswith("Removed 0 vectors")


def test_prune_by_size_comes_down_to_it(nexusflow: Command, file: Path) -> None:
    before = nexusflow.json("cache", "info", "--cache", str(file))
    done = nexusflow.json("cache", "prune", "--to", "100kB", "--cache", str(file))
    after = nexusflow.json("cache", "info", "--cache", str(file))
    assert 0 < after["vectors"] < before["vectors"]
    assert done["removed"]["vectors"] == before["vectors"] - after["vectors"]
    assert done["left"]["vectors"] == after["vectors"]
    assert after["bytes"] <= 100_000 < before["bytes"]


@pytest.mark.parametrize("most", ["0 B", "5kB", "11kB"])
def test_pruning_to_a_size_that_leaves_almost_nothing_asks_first(
    nexusflow: Command, file: Path, most: str
) -> None:
    said = nexusflow.sentence("cache", "prune", "--to", most, "--cache", str(file), code=2)
    assert "removes almost all of the 604 vectors" in said
    assert said.endswith("confirm with --yes")
    assert nexusflow.json("cache", "info", "--cache", str(file))["vectors"] == 604
    nexusflow("cache", "prune", "--to", most, "--yes", "--cache", str(file))
    assert nexusflow.json("cache", "info", "--cache", str(file))["vectors"] == 0


def test_prune_by_age_removes_what_was_not_used_since(
    nexusflow: Command, tmp_path: Path, service: LocalServer
) -> None:
    path = tmp_path / "old.sqlite3"
    old = VectorStore(path, clock=lambda: time.time() - 40 * 86400)
    client = NexusFlow(dimensions=64)
    keyer = old.keyer(base_url=client.base_url, model=client.model, dimensions=64)
    vectors = client.embed(TEXTS[:300])
    old.put([(keyer(text), row) for text, row in zip(TEXTS, vectors, strict=False)])
    old.close()
    kept, _ = nexusflow("cache", "prune", "--older-than", "60d", "--cache", str(path))
    assert kept.startswith("Removed 0 vectors")
    gone, _ = nexusflow("cache", "prune", "--older-than", "30d", "--cache", str(path))
    assert gone.startswith("Removed 300 vectors")


def test_prune_without_age_or_size_is_wrong_usage(nexusflow: Command, file: Path) -> None:
    said = nexusflow.sentence("cache", "prune", "--cache", str(file), code=2)
    assert "--older-than 30d, --to 500MB, or both" in said


def test_clear_asks_and_removes_everything_with_yes(nexusflow: Command, file: Path) -> None:
    assert "--yes" in nexusflow.sentence("cache", "clear", "--cache", str(file), code=2)
    assert nexusflow.json("cache", "info", "--cache", str(file))["vectors"] == 604
    done = nexusflow.json("cache", "clear", "--yes", "--cache", str(file))
    assert done["removed"]["vectors"] == 604
    after = nexusflow.json("cache", "info", "--cache", str(file))
    assert (after["vectors"], after["hits"], after["models"]) == (0, 0, [])


@pytest.mark.parametrize("command", [("info",), ("prune", "--to", "1MB"), ("clear", "--yes")])
def test_a_file_that_is_not_a_cache_is_one_sentence_and_is_not_changed(
    nexusflow: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    corrupt, foreign = tmp_path / "corrupt", tmp_path / "foreign"
    corrupt.write_bytes(b"this is no database" * 300)
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE diary(day, text)")
    database.close()
    for path in (corrupt, foreign):
        before = path.read_bytes()
        assert str(path) in nexusflow.sentence("cache", *command, "--cache", str(path), code=1)
        assert path.read_bytes() == before


def test_a_folder_is_wrong_usage(nexusflow: Command, tmp_path: Path) -> None:
    _, aside = nexusflow("cache", "info", "--cache", str(tmp_path), code=2)
    assert "folder" in aside


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000), ("2 w", 1_209_600)],
)
def test_ages_are_read(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("512 B", 512), ("500MB", 5 * 10**8), ("1.5g", 15 * 10**8), ("10 kB", 10**4)],
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "d", "-3d", "3 moons", "30", "nan d"])
def test_an_invalid_age_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageProblem, match="is not an age"):
        seconds(text)


@pytest.mark.parametrize("text", ["", "B", "5", "-3MB", "3 XB", "infGB"])
def test_an_invalid_size_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageProblem, match="is not a size"):
        size(text)


@pytest.mark.parametrize("text", ["2500 tokens", "2.5k tokens", "2,500tokens", "0.0025M tokens"])
def test_budgets_in_tokens_are_read(text: str) -> None:
    assert budget(text, Price()).tokens == 2500


def test_a_budget_of_zero_needs_no_unit() -> None:
    assert budget("0", Price()).tokens == 0


@pytest.mark.parametrize("text", ["¥2.50", "2.5 CNY", "2.50cny", "¥ 2.5", "￥2.5"])
def test_budgets_in_money_are_read(text: str) -> None:
    assert budget(text, Price()).money == 2.5


@pytest.mark.parametrize("text", ["", "5", "tokens", "¥", "5 apples", "¥5 tokens", "-1 tokens"])
def test_a_budget_without_unit_or_number_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageProblem, match="is not a budget"):
        budget(text, Price())


@pytest.mark.parametrize("text", ["¥2,50", "2,5 CNY", "1.000,50 CNY", "2,50 tokens", "¥1,0000"])
def test_a_decimal_comma_is_not_read_as_a_hundred_times_the_budget(text: str) -> None:
    with pytest.raises(UsageProblem, match="is not a budget"):
        budget(text, Price())
    assert budget("¥1,234.50", Price()).money == 1234.5
    with pytest.raises(UsageProblem, match="is not a size"):
        size("1,5GB")


@pytest.mark.parametrize("text", ["$5", "5 USD", "€1"])
def test_a_budget_of_another_currency_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageProblem, match="the price list is in CNY"):
        budget(text, Price())


def test_verify_keeps_some_vectors_first_and_compares_them_later(
    nexusflow: Command, file: Path, service: LocalServer
) -> None:
    service.reset_stats()
    first = nexusflow.json("cache", "verify", "--cache", str(file))
    assert [row["status"] for row in first["models"]] == ["kept", "kept"]
    assert service.stats.texts == 6
    again = nexusflow.json("cache", "verify", "--cache", str(file))
    assert [(row["dimensions"], row["status"]) for row in again["models"]] == [
        (64, "same"),
        (256, "same"),
    ]
    assert service.stats.texts == 12
    shown, _ = nexusflow("cache", "verify", "--cache", str(file))
    assert "text-embedding-v4, 64: the service returns the same vectors" in shown


def test_verify_and_doctor_find_a_service_that_changed_its_model(
    nexusflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    with LocalServer("hash") as service:
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", service.base_url)
        NexusFlow(cache=True).embed(TEXTS[:5])
        kept = {check["name"]: check for check in nexusflow.json("doctor")["checks"]}
        assert kept["Cached vectors"]["ok"]
        assert "stored" in kept["Cached vectors"]["text"]
        assert "same vectors" in " ".join(nexusflow("doctor")[0].split())
        port = service.port
    with LocalServer("minilm", port=port):
        assert "differently" in nexusflow("cache", "verify", code=1)[0]
        shown, _ = nexusflow("doctor", code=1)
        assert "nexusflow cache clear" in " ".join(shown.split())


def test_verify_needs_a_key_and_creates_no_file(
    nexusflow: Command, tmp_path: Path, service: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _ = nexusflow("cache", "verify")
    assert "no vectors" in shown
    assert not (tmp_path / "cache").exists()
    monkeypatch.delenv("NEXUSFLOW_API_KEY")
    assert "no API key" in nexusflow.sentence("cache", "verify", code=4)


def test_a_client_verifies_its_cache(service: LocalServer, tmp_path: Path) -> None:
    client = NexusFlow(dimensions=64, cache=tmp_path / "vectors.sqlite3")
    assert client.verify_cache() is False
    assert client.verify_cache() is True
    assert client.usage.texts == 9
    assert service.stats.requests == 2
    with pytest.raises(ConfigurationError, match="has no cache"):
        NexusFlow().verify_cache()
