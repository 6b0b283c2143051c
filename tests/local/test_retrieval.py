"""The default model finds texts by meaning, in English, in Chinese and across both languages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nexusflow_integrations.local import load_encoder
from nexusflow_integrations.local.sizes import Projection

if TYPE_CHECKING:
    from conftest import Wire

PASSAGES = [
    "random.shuffle(x): Shuffle list x in place, and return None.",
    "bisect.insort(a, x): Insert item x in list a, and keep it sorted assuming a is sorted.",
    "difflib.unified_diff(a, b): Compare two sequences of lines; generate the delta.",
    "shutil.copytree(src, dst): Recursively copy a directory tree and return the destination.",
    "time.sleep(secs): Delay execution for a given number of seconds.",
    "hashlib.sha256(data): Returns a sha256 hash object; optionally initialized with a string.",
    "json.dumps(obj): Serialize obj to a JSON formatted string.",
    "math.gcd(*integers): Greatest Common Divisor.",
]
ENGLISH = [
    "put the cards of a deck in random order",
    "add an element so that the sequence stays ordered",
    "show what changed between two texts",
    "duplicate a folder with everything in it",
    "wait for a while",
    "fingerprint of a file's bytes",
    "turn a dictionary into text for a web service",
    "largest number that divides both",
]
CHINESE_PASSAGES = [
    "小熊猫生活在喜马拉雅山脉的森林里，主要吃竹子。",
    "北京是中华人民共和国的首都。",
    "光合作用把阳光转化为植物的能量。",
    "股票市场今天大幅下跌，投资者十分担心。",
    "这道菜需要鸡蛋、番茄和少许盐。",
]
CHINESE = [
    "哪种动物吃竹子？",
    "中国的首都是哪里？",
    "植物怎样获得能量？",
    "今天金融市场怎么样？",
    "番茄炒蛋要用什么材料？",
]
ENGLISH_OF_CHINESE_PASSAGES = [
    "Red pandas live in the forests of the Himalayas and eat mostly bamboo.",
    "Beijing is the capital of the People's Republic of China.",
    "Photosynthesis turns sunlight into energy for plants.",
    "The stock market fell sharply today and investors are worried.",
    "This dish needs eggs, tomatoes and a little salt.",
]


def nearest(queries: np.ndarray, passages: np.ndarray) -> list[int]:
    return (queries @ passages.T).argmax(axis=1).tolist()


def hits(queries: np.ndarray, passages: np.ndarray) -> int:
    return sum(got == want for want, got in enumerate(nearest(queries, passages)))


@pytest.mark.slow
def test_english_questions_without_a_shared_word_find_their_passages(real: Wire) -> None:
    assert hits(real.embed(ENGLISH), real.embed(PASSAGES)) >= len(PASSAGES) - 1


def test_chinese_questions_find_chinese_passages(real: Wire) -> None:
    assert hits(real.embed(CHINESE), real.embed(CHINESE_PASSAGES)) == len(CHINESE)


def test_chinese_questions_find_english_passages(real: Wire) -> None:
    passages = real.embed(ENGLISH_OF_CHINESE_PASSAGES)
    assert hits(real.embed(CHINESE), passages) == len(CHINESE)


def test_the_smallest_size_still_finds_most(real: Wire) -> None:
    found = hits(real.embed(ENGLISH, dimensions=64), real.embed(PASSAGES, dimensions=64))
    assert found >= len(PASSAGES) // 2


def test_unrelated_texts_are_nearly_orthogonal_and_paraphrases_near(real: Wire) -> None:
    cat, kitten, tax = real.embed(
        ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "File your taxes by April."]
    )
    assert cat @ kitten > 0.5
    assert abs(cat @ tax) < 0.2


DATA = os.environ.get("NEXUSFLOW_DATA")


@pytest.mark.skipif(not DATA, reason="NEXUSFLOW_DATA names no folder with xquad.*.json")
@pytest.mark.parametrize(("language", "at_least"), [("en", 0.94), ("zh", 0.86)])
def test_xquad_is_retrieved_as_well_as_when_the_model_was_chosen(
    language: str, at_least: float
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    articles = json.loads((Path(str(DATA)) / f"xquad.{language}.json").read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    asked = [
        (question["question"], index)
        for index, paragraph in enumerate(paragraphs)
        for question in paragraph["qas"]
    ]
    encoder = load_encoder()
    projection = Projection(encoder.native_size, encoder.block)

    def embed(texts: list[str]) -> np.ndarray:
        return projection.cut(projection.spread(encoder.encode(texts)), 1024)

    scores = embed([text for text, _ in asked]) @ embed([p["context"] for p in paragraphs]).T
    relevant = np.zeros_like(scores)
    relevant[np.arange(len(asked)), [index for _, index in asked]] = 1
    ndcg = metrics.ndcg_score(relevant, scores, k=10)
    print(f"XQuAD {language}: nDCG@10 {ndcg:.4f} over {len(asked)} questions")
    assert ndcg >= at_least
