"""Tune 60 documents with a cache, for a test that kills it: URL KEY CACHE."""

from __future__ import annotations

import sys

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.tune import Answer, Question, Tuning

FILLER = "Nobody knows how many of them there are, and counting takes long. " * 8
DOCUMENTS = {
    f"{number}.md": f"# Animal {number}\n\nNumber {number} sleeps in hollow {number}. {FILLER}"
    for number in range(60)
}
QUESTIONS = [
    Question(f"the bed of number {number}", (Answer(f"{number}.md"),)) for number in range(0, 60, 2)
]


def main(base_url: str, key: str, cache: str) -> None:
    client = NexusFlow(key, base_url=base_url, cache=cache, max_concurrency=2, batch_size=5)
    # One size, so that no text is asked for twice to compare sizes.
    result = Tuning(DOCUMENTS, QUESTIONS, client=client, sizes=[64]).run()
    print(result.usage.tokens, result.usage.repaid)


if __name__ == "__main__":
    main(*sys.argv[1:])
