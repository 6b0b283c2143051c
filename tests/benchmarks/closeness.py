"""The best score of questions that a corpus answers, and of questions about something else.

    python tests/benchmarks/closeness.py [FOLDER]

The corpora are the 500 docstrings of the demo with its fixed questions and, if FOLDER holds it,
the tutorial of CPython 3.11 (see cutting.py). For each threshold it prints how many answered
questions would get "nothing close found", and how many unrelated ones would get an answer. `ask`
and `search` use the one in nexusflow_integrations/cli/rag/answer.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tutorial_questions import LABELLED

from nexusflow_integrations.cli.rag.corpus import folder, stdlib
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.local import load_encoder

UNRELATED = (
    "How long do I boil an egg?",
    "What is the capital of Peru?",
    "Which plants grow in the shade?",
    "Who painted the Mona Lisa?",
    "How do I get red wine out of a carpet?",
    "When does the next train to Lyon leave?",
    "What should I feed a hedgehog?",
    "Why is the sky blue?",
    "How much sleep does a baby need?",
    "What are the symptoms of the flu?",
    "How do I change a bicycle tyre?",
    "Which team won the world cup?",
    "What is a good wine with fish?",
    "How tall is Mount Everest?",
    "How do I ask my landlord for a repair?",
    "怎么煮鸡蛋？",
    "秘鲁的首都是哪里？",
    "哪些植物喜欢阴凉？",
    "蒙娜丽莎是谁画的？",
    "感冒有什么症状？",
    "婴儿每天要睡多久？",
    "自行车轮胎怎么换？",
    "天空为什么是蓝色的？",
    "珠穆朗玛峰有多高？",
    "红酒洒在地毯上怎么办？",
)


def main(tutorial: Path | None) -> None:
    """Print the quantiles of both kinds of questions, and what thresholds do."""
    encoder = load_encoder(threads=2)
    answered: list[float] = []
    unrelated: list[float] = []
    corpora = [(stdlib(), [item.text for item in QUESTIONS])]
    if tutorial is not None:
        corpora.append((folder(tutorial), [item.text for item in LABELLED]))
    for corpus, questions in corpora:
        rows = encoder.encode([item.text for item in corpus.documents])
        for texts, best in ((questions, answered), (UNRELATED, unrelated)):
            best += (encoder.encode(texts) @ rows.T).max(axis=1).tolist()
    for name, scores in (("answered", answered), ("unrelated", unrelated)):
        shown = " ".join(f"{x:.2f}" for x in np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.95, 1]))
        print(f"{name:10} {len(scores)}: quantiles 0, 5, 25, 50, 95, 100 %: {shown}")
    for threshold in np.arange(0.2, 0.6, 0.025):
        lost = sum(score < threshold for score in answered)
        kept = sum(score >= threshold for score in unrelated)
        print(f"{threshold:.3f}: {lost} answered below, {kept} unrelated above")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
