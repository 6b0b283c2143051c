"""Fixed questions about the standard library, each with its accepted answers.

They were written in everyday words before any score was measured, and were not tuned afterwards: a
question that no method answers is kept. Some questions contain a keyword of their answer, which
suits BM25; others share no word with their answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

EXAMPLE = "怎样打乱列表的顺序？"
"""The question that `demo` suggests next; the local model finds its answer."""


@dataclass(frozen=True)
class Question:
    """A question and the sources that answer it.

    Attributes:
        text: What is asked.
        accepted: Regular expression that must match the whole name of a correct answer.
        language: ISO 639-1 code.
    """

    text: str
    accepted: str
    language: Literal["en", "zh"] = "en"

    def accepts(self, source: str) -> bool:
        """Return whether ``source``, a dotted name, is a correct answer."""
        return re.fullmatch(self.accepted, source) is not None


QUESTIONS: tuple[Question, ...] = (
    Question(
        "How do I pick a random item from a list?", r"(random|secrets)\.choices?|random\.sample"
    ),
    Question("How can I shuffle a deck of cards?", r"random\.shuffle"),
    Question("wait five seconds before going on", r"time\.sleep"),
    Question("copy a whole folder with everything in it", r"shutil\.copytree"),
    Question("delete a directory even if it is not empty", r"shutil\.rmtree"),
    Question("How do I turn a dictionary into JSON text?", r"json\.(dumps?|JSONEncoder)"),
    Question(
        "show what changed between two versions of a text",
        r"difflib\.(unified_diff|context_diff|ndiff|diff_bytes|Differ|HtmlDiff|SequenceMatcher)",
    ),
    Question("keep a list sorted while adding new elements", r"bisect\.insort(_left|_right)?"),
    Question("the three largest numbers in a list", r"heapq\.nlargest"),
    Question(
        "How do I measure how long my code takes to run?",
        r"timeit\.\w+|time\.(perf_counter|process_time|monotonic|thread_time)(_ns)?",
    ),
    Question(
        "run another program and read what it prints",
        r"subprocess\.(run|Popen|check_output|getoutput|getstatusoutput)",
    ),
    Question("ask for a password without showing it on the screen", r"getpass\.getpass"),
    Question("What is the average of these numbers?", r"statistics\.f?mean"),
    Question(
        "remember results of a slow function so that it is not computed twice",
        r"functools\.(lru_cache|cache|cached_property)",
    ),
    Question("all possible orderings of a few items", r"itertools\.permutations"),
    Question("count how often each word appears", r"collections\.Counter"),
    Question(
        "pack a folder into a zip file",
        r"shutil\.make_archive|zipfile\.(ZipFile|PyZipFile|main)",
    ),
    Question(
        "a scratch file that vanishes when I close it",
        r"tempfile\.(NamedTemporaryFile|TemporaryFile|SpooledTemporaryFile)",
    ),
    Question("split a web address into its parts", r"urllib\.parse\.url(parse|split)"),
    Question("open a page in the user's browser", r"webbrowser\.(open\w*|get)"),
    Question("make an independent copy of nested lists", r"copy\.deepcopy"),
    Question(
        "break long text into lines that fit the screen", r"textwrap\.(wrap|fill|TextWrapper)"
    ),
    Question("How much free space is left on the disk?", r"shutil\.disk_usage"),
    Question(
        "a secret code nobody can guess, for a password reset link",
        r"secrets\.(token_\w+|randbelow|randbits|choice)",
    ),
    Question("are two floating point numbers nearly equal?", r"(math|cmath)\.isclose"),
    Question("Which day of the week was I born on?", r"calendar\.weekday|datetime\.date(time)?"),
    Question("怎样把列表的顺序打乱？", r"random\.shuffle", "zh"),
    Question("如何复制整个文件夹？", r"shutil\.copytree", "zh"),
    Question(
        "比较两段文本有什么不同",
        r"difflib\.(unified_diff|context_diff|ndiff|diff_bytes|Differ|HtmlDiff|SequenceMatcher)",
        "zh",
    ),
    Question("怎么让程序暂停几秒钟？", r"time\.sleep", "zh"),
    Question("计算一组数字的平均值", r"statistics\.f?mean", "zh"),
    Question("求两个整数的最大公约数", r"math\.gcd", "zh"),
    Question("怎样读取 CSV 文件？", r"csv\.(reader|DictReader)", "zh"),
    Question("如何在浏览器中打开网页？", r"webbrowser\.(open\w*|get)", "zh"),
)
