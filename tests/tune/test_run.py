"""Whole runs with a local server: payments, the choice, and what is kept after a failure."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="comes with the extra `tune`")

from nexusflow_integrations import Budget, NexusFlow, Price
from nexusflow_integrations.errors import (
    APIConnectionError,
    BudgetExceededError,
    ConfigurationError,
    NexusFlowError,
)
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.tune import (
    Answer,
    Question,
    TunedSettings,
    TuneResult,
    Tuning,
    tune,
)
from nexusflow_integrations.tune.page import page

pytestmark = pytest.mark.timeout(300)

_ANIMALS = [
    "panda",
    "otter",
    "heron",
    "badger",
    "lynx",
    "viper",
    "stork",
    "mole",
    "newt",
    "crane",
    "hare",
    "toad",
]
_DOINGS = ("sleeps in a hollow", "eats what the river brings", "hides from the winter storms")


def _documents() -> dict[str, str]:
    filler = "Nobody knows how many of them there are, and counting takes long. " * 6
    return {
        f"{animal}.md": "\n\n".join(
            f"## Part {number}\n\nThe {animal} {doing}. {filler}\n\nIt was seen {number} times."
            for number, doing in enumerate(_DOINGS)
        )
        for animal in _ANIMALS
    }


def _questions() -> list[Question]:
    return [
        Question(f"{doing[-16:-5]} or {animal[1:]}s", (Answer(quotes=(f"The {animal} {doing}.",)),))
        for animal in _ANIMALS
        for doing in _DOINGS
    ]


@pytest.fixture(scope="module")
def cutting_server() -> Iterator[LocalServer]:
    with LocalServer("hash", record_texts=True) as server:
        yield server


@pytest.fixture
def local(cutting_server: LocalServer) -> LocalServer:
    cutting_server.reset_stats()
    return cutting_server


def _client(server: LocalServer, **settings: Any) -> NexusFlow:
    return NexusFlow(server.api_key, base_url=server.base_url, **settings)


def _tuning(client: NexusFlow, **settings: Any) -> Tuning:
    settings = {"sizes": [2048, 512, 64], **settings}
    return Tuning(_documents(), _questions(), client=client, **settings)


def _sent(server: LocalServer) -> list[str]:
    return list(server.stats.received)


def _without_times(result: TuneResult) -> list[Any]:
    return [{**row, "milliseconds": 0} for row in result.as_json()["settings"]]


def test_the_plan_sends_nothing_and_names_the_smallest_measurable_difference(
    local: LocalServer,
) -> None:
    plan = _tuning(_client(local)).plan()
    assert local.stats.requests == 0
    assert (plan.questions, plan.documents, plan.made) == (36, 12, False)
    assert 0.1 < plan.tellable < 0.2
    assert plan.tokens == sum(stage.tokens for stage in plan.stages)
    assert plan.cost == plan.price.of(plan.tokens)


_LONG = "Represent this passage of a manual, so that a customer who asks will find it: " * 8


@pytest.mark.parametrize(
    "instructed",
    [
        {"document_instructions": [_LONG]},
        {"start": TunedSettings(document_instruction=_LONG)},
        {"start": TunedSettings(query_instruction=_LONG)},
    ],
)
def test_the_plan_counts_the_tokens_of_instructions(
    local: LocalServer, instructed: dict[str, Any]
) -> None:
    only: dict[str, Any] = {"lengths": [], "overlaps": [], "headings": False}
    tuning = _tuning(_client(local), **only, query_instructions=[], **instructed)
    plan = tuning.plan()
    assert tuning.run().usage.tokens <= plan.tokens * (1 + plan.token_error)


def test_each_text_is_paid_for_once_for_all_sizes(local: LocalServer) -> None:
    result = _tuning(_client(local)).run()
    assert result.cut_sizes == (512, 64)
    assert result.paid_sizes == ()
    twice = local.stats.duplicates
    assert len(twice) == 10
    assert set(twice.values()) == {3}, "a few are asked for in the other two sizes as well"
    assert local.stats.tokens == result.usage.tokens
    sizes = {item.setting.dimensions for item in result.measured}
    assert sizes == {0, 2048, 512, 64}


def test_a_cut_vector_scores_as_the_servers_own() -> None:
    with LocalServer("hash") as server:
        once = _tuning(_client(server), storages=["float32"]).run()
    for size in (512, 64):
        with LocalServer("hash") as server:
            alone = _tuning(_client(server), sizes=[size], storages=["float32"]).run()
        mine = next(item for item in alone.measured if item.setting.dimensions == size)
        same = [item for item in once.measured if item.setting == mine.setting]
        assert all(np.allclose(item.scores, mine.scores) for item in same)


def test_sizes_that_cannot_be_cut_are_each_paid_for_and_named() -> None:
    with LocalServer("hash", sizes="independent", record_texts=True) as server:
        only: dict[str, Any] = {"lengths": [], "overlaps": [], "headings": False}
        only |= {"query_instructions": [], "storages": ["float32"]}
        result = _tuning(_client(server), **only).run()
        assert result.paid_sizes == (512, 64)
        assert result.cut_sizes == ()
        assert any("512, 64 numbers are not the beginning" in note for note in result.notes())
        asked = _questions()[0].text
        assert _sent(server).count(asked) == 3
        size = 64
        alone = _tuning(_client(server), sizes=[size], **only).run()
    mine = next(item for item in alone.measured if item.setting.dimensions == size)
    same = next(item for item in result.measured if item.setting == mine.setting)
    assert np.allclose(mine.scores, same.scores), "measured with the size's own vectors"


def test_the_tokens_billed_are_the_tokens_predicted(local: LocalServer) -> None:
    result = _tuning(_client(local)).run()
    assert result.predicted_tokens == pytest.approx(result.usage.tokens, rel=0.05)


def test_a_run_that_failed_goes_on_and_pays_nothing_twice(
    local: LocalServer, tmp_path: Path
) -> None:
    whole = _tuning(_client(local)).run()
    local.reset_stats()
    cache = tmp_path / "cache.db"
    failing = _tuning(_client(local, cache=cache))

    def stop(stage: str) -> None:
        if stage == "query instruction":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing.run(stop)
    paid = local.stats.tokens
    assert 0 < paid < whole.usage.tokens
    again = _tuning(_client(local, cache=cache))
    assert again.plan().tokens < _tuning(_client(local)).plan().tokens
    result = again.run()
    assert local.stats.tokens == whole.usage.tokens
    assert result.usage.tokens == whole.usage.tokens - paid
    assert _without_times(result) == _without_times(whole)


def test_the_budget_holds_and_what_it_left_out_is_named(local: LocalServer) -> None:
    whole = _tuning(_client(local)).run()
    local.reset_stats()
    budget = Budget(tokens=whole.usage.tokens * 3 // 4)
    result = _tuning(_client(local), budget=budget).run()
    assert local.stats.tokens <= whole.usage.tokens * 3 // 4
    assert result.skipped
    assert all("the budget is too small" in line for line in result.skipped)
    assert any(note.startswith("Not tried: ") for note in result.notes())
    assert {item.setting.dimensions for item in result.measured} >= {2048, 512, 64}


@pytest.mark.parametrize("measured", [True, False])
def test_a_budget_that_ends_between_paid_sizes_does_not_change_the_defaults(measured: bool) -> None:
    with LocalServer("hash", sizes="independent") as server:

        def tuning(budget: Budget | None = None) -> Tuning:
            return Tuning(
                *(_documents(), _questions()[:24]),
                client=_client(server),
                budget=budget,
                sizes=[2048, 1536, 1024, 64],
                lengths=[],
                overlaps=[],
                headings=False,
                query_instructions=[],
            )

        size = tuning().plan().stages[0].tokens
        result = tuning(Budget(tokens=size * 2 if measured else size * 5 // 4)).run()
    assert result.too_few
    assert result.settings == TunedSettings(dimensions=1024)
    said, skipped = result.sentence(), " ".join(result.notes())
    start = "1024, 800 characters"
    assert (f"Keep {start}: " in said) is measured
    assert (f"{start}; the budget was too small to measure them" in said) is not measured
    assert (f" {start};" in skipped) is not measured
    assert "; 64, 800 characters, hybrid: the budget is too small" in skipped
    chosen = [row["setting"] for row in result.as_json()["settings"] if row["chosen"]]
    assert chosen == ([start] if measured else [])
    assert ('<tr class="chosen">' in page(result)) is measured
    assert ("The ring marks the choice" in page(result)) is measured


def test_a_budget_that_is_too_small_for_the_first_stage_is_an_error(local: LocalServer) -> None:
    with pytest.raises(BudgetExceededError, match=r"needs about [\d,]+ tokens"):
        _tuning(_client(local), budget=Budget(tokens=50)).run()
    assert local.stats.requests == 0


def test_two_budgets_are_one_too_many(local: LocalServer) -> None:
    client = _client(local, budget=Budget(tokens=50))
    with pytest.raises(ConfigurationError, match="already has a budget"):
        _tuning(client, budget=Budget(tokens=50))


def test_the_clients_own_usage_is_not_counted(local: LocalServer) -> None:
    client = _client(local, dimensions=2048)
    client.embed("something else, before")
    before = client.usage.tokens
    result = _tuning(client).run()
    assert result.usage.tokens == local.stats.tokens - before


def test_short_texts_are_not_tried_in_other_lengths(local: LocalServer) -> None:
    documents = [(f"intent {i % 4}", f"{_ANIMALS[i]} {_DOINGS[i % 3]}") for i in range(12)]
    questions = [Question(f"{_ANIMALS[i]}s", (Answer(f"intent {i % 4}"),)) for i in range(12)]
    result = tune(documents, questions, client=_client(local), sizes=[64])
    assert len({item.setting.cutting for item in result.measured}) == 1


def test_without_questions_they_are_made_and_the_result_says_so(local: LocalServer) -> None:
    documents = {
        name: f"{text}\n\nFirst comes {name}. Then it says what a {name} is not. It ends."
        for name, text in _documents().items()
    }
    result = tune(documents, client=_client(local), sizes=[64], overlaps=[])
    assert result.made
    assert any("made from the documents" in note for note in result.notes())
    passages = [text for text in _sent(local) if text not in {q.text for q in result.questions}]
    assert not [q for q in result.questions if any(q.text in text for text in passages)]


def test_one_question_is_said_to_be_too_few(local: LocalServer) -> None:
    result = Tuning(_documents(), _questions()[:1], client=_client(local), sizes=[64]).run()
    assert result.tellable > 0.5
    assert result.sentence().startswith("The questions are too few: ")


def test_with_too_few_questions_the_settings_are_those_without_tuning(local: LocalServer) -> None:
    tuning = _tuning(_client(local), sizes=[2048, 1024, 64])
    result = Tuning(
        _documents(), tuning.questions[:8], client=_client(local), sizes=[2048, 1024, 64]
    ).run()
    assert result.too_few
    assert result.settings == TunedSettings(dimensions=1024)
    assert "Keep 1024, 800 characters: " in result.sentence()
    assert "take" not in result.sentence().lower()


def test_the_choice_is_a_setting_that_a_client_takes(local: LocalServer) -> None:
    result = tune(_documents(), _questions(), client=_client(local), sizes=[2048, 64])
    client = _client(local, **result.settings.for_client())
    assert client.dimensions == result.chosen.setting.dimensions
    assert str(result.chosen.setting) in result.sentence()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sizes": []}, "sizes"),
        ({"sizes": [300]}, "dimensions"),
        ({"lengths": [3]}, "lengths"),
        ({"overlaps": [0.9]}, "overlaps must be a number of at least 0 and at most 0.25, not 0.9"),
        ({"storages": ["int4"]}, "storages"),
        ({"storages": "float32"}, "storages must be a list, not 'float32'"),
        ({"sizes": 64}, "sizes must be a list, not 64"),
        ({"lengths": 800}, "lengths must be a list, not 800"),
        ({"overlaps": 0.1}, "overlaps must be a list"),
        ({"query_instructions": "ask: "}, "query_instructions must be a list, not 'ask: '"),
        ({"query_instructions": [5]}, "query_instructions: item 0 must be text, not 5"),
        ({"document_instructions": {"a": 1}}, "document_instructions must be a list, not dict"),
        ({"headings": "no"}, "headings must be True or False"),
        ({"hybrid": 0}, "hybrid must be True or False"),
        ({"client": 5}, "client must be a NexusFlow or None, not 5"),
        ({"chat": "a-model"}, "chat must be a ChatModel or None"),
        ({"start": {}}, "start must be a TunedSettings or None"),
        ({"budget": 5}, "budget must be a Budget"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_sent(
    settings: dict[str, Any], problem: str, local: LocalServer
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{problem}"):
        Tuning(
            _documents(),
            _questions(),
            **{"client": _client(local), "sizes": [2048, 512, 64]} | settings,
        )
    assert local.stats.requests == 0


@pytest.mark.parametrize("text", ["word " * 20_000, "half \ud800", "\0"])
def test_a_question_that_cannot_be_sent_is_named(text: str, local: LocalServer) -> None:
    last = Question(text, (Answer("lynx.md"),), where="questions.jsonl, line 40")
    with pytest.raises(ConfigurationError, match=r"^questions.jsonl, line 40 \('.*'\): the text "):
        Tuning(_documents(), [*_questions(), last], client=_client(local))


def test_documents_that_are_none_are_refused(local: LocalServer) -> None:
    for documents in ({}, {"a": " "}, ["a"], [("a", 7)], 5, "ab"):
        with pytest.raises(ConfigurationError, match="documents"):
            tune(documents, client=_client(local))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"must be a mapping from name to text.*not str"):
        tune("a text", client=_client(local))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Pass your own questions"):
        tune({"a": "One sentence."}, client=_client(local))
    short = "The first is here. The second is short. The third is here."
    with pytest.raises(ConfigurationError, match="a sentence of at least 6 words"):
        tune({"a": short}, client=_client(local))
    with pytest.raises(ConfigurationError, match="there are no questions"):
        tune({"a": "One sentence."}, [], client=_client(local))


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ("abc", r"must be a list of questions, not one string: write \[question\]"),
        ({"q": "panda.md"}, r"not dict: pass its values\(\)"),
        (UserDict(q="panda.md"), r"not UserDict: pass its values\(\)"),
        ({Question("q", (Answer("panda.md"),))}, "not set, which has no order"),
        (SimpleNamespace(columns=["question"]), "which yields the names of its columns"),
        (5, "must be a list of questions, not int"),
        (["a"], "item 0 must be a Question of nexusflow_integrations.tune, not str"),
        ([Question("q", "panda.md")], "item 0 is invalid: a Question needs"),  # type: ignore[arg-type]
        ([Question("q", Answer("panda.md"))], "item 0 is invalid: a Question needs"),  # type: ignore[arg-type]
        ([Question(5, (Answer("panda.md"),))], "item 0 is invalid: a Question needs"),  # type: ignore[arg-type]
    ],
)
def test_questions_of_the_wrong_kind_are_refused(
    questions: Any, said: str, local: LocalServer
) -> None:
    with pytest.raises(ConfigurationError, match=f"^questions.*{said}"):
        tune(_documents(), questions, client=_client(local))
    assert local.stats.requests == 0


def test_a_progress_that_raises_is_logged_once(
    local: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(stage: str) -> None:
        raise ZeroDivisionError

    tuning = _tuning(_client(local), sizes=[64])
    assert tuning.run(fails).measured
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("progress raised ZeroDivisionError; the call continues")
    with pytest.raises(ConfigurationError, match=r"^progress must be a function"):
        tuning.run(5)  # type: ignore[arg-type]


def test_an_unknown_price_is_not_a_number_in_json_or_on_the_page(local: LocalServer) -> None:
    client = _client(local, price=Price(per_million_tokens=None))
    result = _tuning(client, sizes=[64], lengths=[], overlaps=[], headings=False).run()
    found = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert found["list_price"] is found["settings"][0]["list_price"] is None
    assert "nan" not in page(result)
    assert "tokens were billed, price not known." in page(result)


def test_the_page_names_the_settings_that_answer_every_question(local: LocalServer) -> None:
    result = _tuning(_client(local), lengths=[], overlaps=[], headings=False).run()
    ones = [replace(item, scores=np.ones_like(item.scores)) for item in result.measured]
    small = next(place for place, item in enumerate(ones) if str(item.setting).startswith("64, "))
    ones[small] = replace(ones[small], scores=np.zeros_like(ones[small].scores))
    answered = replace(result, measured=tuple(ones), chosen=ones[0], start=ones[0])
    said = page(answered).partition("Questions that a setting does not answer")[2]
    assert "Each of these settings answers every question in its first five results." in said
    assert f"These settings are: {ones[0].setting}; " in said
    assert f"{ones[small].setting};" not in said
    others = len(ones) - said.count("characters")
    assert f"1 of {others} other settings does not answer every question there." in said


def test_a_client_with_an_instruction_is_refused(local: LocalServer) -> None:
    with pytest.raises(ConfigurationError, match="query_instructions="):
        _tuning(_client(local, query_instruction="ask: "))


def test_passages_that_are_refused_are_counted_and_not_found(local: LocalServer) -> None:
    documents = {**_documents(), "odd.md": "panda " * 100}
    client = _client(local, max_text_tokens=None)
    result = tune(documents, _questions(), client=client, sizes=[64])
    assert result.left_out == 0
    said = replace(result, left_out=3).notes()[-1]
    assert said == "The service refused 3 passages. No setting can find them."


def test_without_a_service_the_error_is_the_clients() -> None:
    client = NexusFlow("k", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(NexusFlowError) as raised:
        _tuning(client).run()
    assert isinstance(raised.value, APIConnectionError)
