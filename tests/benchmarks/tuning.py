"""What ``tune`` chooses on one half of the questions, judged on the other half.

    python -m tests.benchmarks.tuning --data FOLDER --tutorial FOLDER --cache vectors.db

Six corpora with labels: docstrings and tutorial of Python, XQuAD in English and Chinese, CLINC150,
Banking77. ``--data`` has the published files of the last four, ``--tutorial`` the ``.rst`` files of
``Doc/tutorial`` of CPython 3.11. The vectors are those of the local model. One run on all questions
says what is chosen; then the questions are split at random, again and again: one half chooses, the
other half judges.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.cli.rag.corpus import stdlib
from nexusflow_integrations.cli.rag.passages import sentences
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.tune import Answer, Measured, Question, Tuning
from nexusflow_integrations.tune.measuring import Measuring
from nexusflow_integrations.tune.scores import Bootstrap
from nexusflow_integrations.tune.search import Stage, best_of, choose, drive, search
from nexusflow_integrations.tune.settings import Setting

Corpus = tuple[list[tuple[str, str]], list[Question]]
_SEED = 150


def docstrings() -> Corpus:
    documents = [(item.source, item.text) for item in stdlib().documents]
    names = sorted({source for source, _ in documents})
    asked = [
        Question(item.text, tuple(Answer(name) for name in names if item.accepts(name)))
        for item in QUESTIONS
    ]
    return documents, [item for item in asked if item.answers]


def tutorial(folder: Path) -> Corpus:
    from .tutorial_questions import LABELLED

    documents = [(path.name, path.read_text("utf-8")) for path in sorted(folder.glob("*.rst"))]
    return documents, [
        Question(item.text, (Answer(f"{item.file}.rst", quotes=(item.phrase,)),))
        for item in LABELLED
    ]


def xquad(path: Path) -> Corpus:
    """Each article is a document; the sentence with the answer is what has to be found."""
    documents, questions = [], []
    for number, article in enumerate(json.loads(path.read_text("utf-8"))["data"]):
        name = f"{number}.md"
        contexts = [" ".join(item["context"].split()) for item in article["paragraphs"]]
        documents.append((name, "\n\n".join(contexts)))
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answer = asked["answers"][0]
                quote = _sentence(paragraph["context"], answer["answer_start"])
                questions.append(Question(asked["question"], (Answer(name, quotes=(quote,)),)))
    return documents, questions


def _sentence(text: str, at: int) -> str:
    """Return the sentence that holds a character of the text."""
    place = len(" ".join(text[: at + 1].split())) - 1
    plain, end = " ".join(text.split()), 0
    for sentence in sentences(plain):
        end = plain.index(sentence, end) + len(sentence)
        if end > place:
            return sentence
    raise ValueError("the answer is after the last sentence")


def clinc(path: Path) -> Corpus:
    data = json.loads(path.read_text("utf-8"))
    return _intents(data["train"][::6], data["test"][::4])


def banking(train: Path, test: Path) -> Corpus:
    known, asked = ([*csv.reader(path.open(encoding="utf-8"))][1:] for path in (train, test))
    return _intents(known[::4], asked[::3])


def _intents(known: Sequence[Sequence[str]], asked: Sequence[Sequence[str]]) -> Corpus:
    labels = {label for _, label in known}
    return [(label, text) for text, label in known], [
        Question(text, (Answer(label),)) for text, label in asked if label in labels
    ]


class Measurer:
    """Measures each setting once, with all questions; a half sees its own questions' scores."""

    def __init__(self, tuning: Tuning) -> None:
        self._measuring = Measuring(tuning, tuning._largest)
        self._known: dict[Setting, Measured | None] = {}

    def __call__(self, stage: Stage, half: np.ndarray) -> list[Measured]:
        new = tuple(item for item in stage.settings if item not in self._known)
        if new:
            found = {
                item.setting: item for item in self._measuring.stage(replace(stage, settings=new))
            }
            self._known |= {item: found.get(item) for item in new}
        known = [self._known[item] for item in stage.settings]
        return [
            replace(item, scores=item.scores[half], read=item.read[half])
            for item in known
            if item is not None
        ]

    def score(self, setting: Setting, half: np.ndarray) -> float:
        item = self._known[setting]
        assert item is not None
        return float(item.scores[half, 0].mean())


def split(tuning: Tuning, measurer: Measurer, random: np.random.Generator) -> dict[str, Any]:
    """Choose on one half of the questions, and judge on the other."""
    order = random.permutation(len(tuning.questions))
    mine, other = np.array_split(order, 2)

    def run(half: np.ndarray) -> tuple[Bootstrap, list[Measured]]:
        bootstrap = Bootstrap(len(half))
        return bootstrap, drive(
            search(tuning._first, tuning._options, bootstrap), partial(measurer, half=half)
        )

    bootstrap, found = run(mine)
    bootstrap_there, elsewhere = run(other)
    best_here = best_of(found, bootstrap)
    chosen = choose(found, bootstrap)
    best = best_of(elsewhere, bootstrap_there)
    there = measurer.score(chosen.setting, other)
    interval = bootstrap.interval(chosen.quality)
    default = replace(tuning._first, dimensions=1024)
    between = bootstrap.interval(chosen.quality - measurer_scores(measurer, default, mine))
    apart = there - measurer.score(default, other)
    return {
        "regret": best.mean - there,
        "regret_of_best": best.mean - measurer.score(best_here.setting, other),
        "same_length": best.setting.cutting.characters == chosen.setting.cutting.characters,
        "covered": interval.low <= there <= interval.high,
        "difference_covered": between.low <= apart <= between.high,
        "chosen": str(chosen.setting),
    }


def measurer_scores(measurer: Measurer, setting: Setting, half: np.ndarray) -> Any:
    item = measurer._known[setting]
    assert item is not None
    return item.scores[half, 0]


def by_length(tuning: Tuning, measurer: Measurer) -> dict[str, Any]:
    """Compare lengths of passages by what the first ``READ`` characters of them answer.

    Each with its difference from the default, and 1.96 standard errors of it.
    """
    everything, found = np.arange(len(tuning.questions)), {}
    for method in ("vectors", "hybrid"):
        usual = tuning._first.with_method(method)
        settings = [
            replace(usual, cutting=replace(usual.cutting, characters=length))
            for length in tuning._options.lengths
        ]
        measured = measurer(Stage("passage length", (usual, *settings)), everything)
        for item in measured:
            apart = item.read - measured[0].read
            error = 1.96 * apart.std() / np.sqrt(len(apart))
            found[str(item.setting)] = [item.read.mean(), apart.mean(), error]
    return found


def prove(corpus: Corpus, client: NexusFlow, splits: int) -> dict[str, Any]:
    documents, questions = corpus
    tuning = Tuning(documents, questions, client=client)
    result = tuning.run(lambda stage: print(f"  {stage}", flush=True))
    measurer = Measurer(tuning)
    everything = np.arange(len(questions))
    default = replace(tuning._first, dimensions=1024)
    measurer(Stage("method", (tuning._first,)), everything)
    measurer(Stage("size", (default,)), everything)
    random = np.random.default_rng(_SEED)
    halves = [split(tuning, measurer, random) for _ in range(splits)]
    regrets = np.array([half["regret"] for half in halves])
    usual = next(item for item in measurer(Stage("size", (default,)), everything))
    bootstrap = Bootstrap(len(questions))
    chosen = choose(result.measured, bootstrap)
    apart = bootstrap.interval(chosen.quality - usual.quality)
    return {
        "documents": len(documents),
        "questions": len(questions),
        "chosen": str(chosen.setting),
        "chosen_score": chosen.mean,
        "best": str(result.best.setting),
        "best_score": result.best.mean,
        "default_score": usual.mean,
        "against_default": [apart.value, apart.low, apart.high],
        "bytes": chosen.bytes,
        "default_bytes": usual.bytes,
        "tokens": chosen.tokens,
        "default_tokens": usual.tokens,
        "predicted_tokens": result.predicted_tokens,
        "billed_tokens": result.usage.tokens,
        "tellable": result.tellable,
        "regret_median": float(np.median(regrets)),
        "regret_90": float(np.quantile(regrets, 0.9)),
        "within_a_point": float(np.mean(regrets <= 0.01)),
        "best_within_a_point": float(np.mean([half["regret_of_best"] <= 0.01 for half in halves])),
        "same_length": float(np.mean([half["same_length"] for half in halves])),
        "lengths": by_length(tuning, measurer),
        "first_split_regret": float(regrets[0]),
        "covered": float(np.mean([half["covered"] for half in halves])),
        "difference_covered": float(np.mean([half["difference_covered"] for half in halves])),
        "settings": result.as_json()["settings"],
    }


def corpora(data: Path | None, folder: Path | None) -> dict[str, Callable[[], Corpus]]:
    found: dict[str, Callable[[], Corpus]] = {"docstrings": docstrings}
    if folder is not None:
        found["tutorial"] = partial(tutorial, folder)
    if data is not None:
        found |= {
            "XQuAD en": partial(xquad, data / "xquad.en.json"),
            "XQuAD zh": partial(xquad, data / "xquad.zh.json"),
            "CLINC150": partial(clinc, data / "clinc150_data_full.json"),
            "Banking77": partial(
                banking, data / "banking77_train.csv", data / "banking77_test.csv"
            ),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--tutorial", type=Path, help="folder of Doc/tutorial")
    parser.add_argument("--cache", type=Path, help="file of vectors, for another run")
    parser.add_argument("--port", type=int, default=8771, help="part of the vectors' identity")
    parser.add_argument("--model", default="use", help="of the local server")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of corpora")
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else {}
    with LocalServer(args.model, port=args.port) as server:
        client = NexusFlow(server.api_key, base_url=server.base_url, cache=args.cache)
        for name, load in corpora(args.data, args.tutorial).items():
            if args.only and name not in args.only:
                continue
            print(name, flush=True)
            done[name] = prove(load(), client, args.splits)
            shown = {key: value for key, value in done[name].items() if key != "settings"}
            print(json.dumps(shown, indent=1), flush=True)
            args.out.write_text(json.dumps(done, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
