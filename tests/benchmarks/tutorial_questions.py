"""Questions about the Python tutorial, with a phrase of the passage that answers.

Written before any search was run on them. The tutorial is ``Doc/tutorial/*.rst`` of CPython 3.11.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Labelled(NamedTuple):
    """A question; it is answered by a passage of ``file`` that contains ``phrase``."""

    language: str
    text: str
    file: str
    phrase: str

    def answered_by(self, source: str, passage: str) -> bool:
        """Return whether a passage answers; white space does not count."""
        return self.phrase in re.sub(r"\s+", " ", passage) and source.startswith(self.file)


LABELLED = tuple(
    Labelled(*row)
    for row in (
        ("en", "How do I stop a loop early?", "controlflow", "breaks out of the innermost"),
        (
            "en",
            "How can I give an argument a value to use when the caller passes none?",
            "controlflow",
            "specify a default value for one or more arguments",
        ),
        (
            "en",
            "Why does my list keep growing between calls of the function?",
            "controlflow",
            "The default value is evaluated only once",
        ),
        (
            "en",
            "Can a function take any number of arguments?",
            "controlflow",
            "can be called with an arbitrary number of arguments",
        ),
        (
            "en",
            "How do I write a small function without a name?",
            "controlflow",
            "Small anonymous functions can be created",
        ),
        ("en", "How many spaces should I indent with?", "controlflow", "Use 4-space indentation"),
        (
            "en",
            "How do I count from zero to nine?",
            "controlflow",
            "function :func:`range` comes in handy",
        ),
        (
            "en",
            "What is the last thing put in the first to come out, with lists?",
            "datastructures",
            "very easy to use a list as a stack",
        ),
        (
            "en",
            "How do I remove duplicates from a collection?",
            "datastructures",
            "eliminating duplicate entries",
        ),
        (
            "en",
            "How do I go through keys and values at the same time?",
            "datastructures",
            "key and corresponding value can be retrieved",
        ),
        (
            "en",
            "How do I go through two lists side by side?",
            "datastructures",
            "loop over two or more sequences at the same time",
        ),
        (
            "en",
            "How do I write a tuple with only one element?",
            "datastructures",
            "a tuple with one item is constructed",
        ),
        ("en", "How do I catch an error?", "errors", "programs that handle selected exceptions"),
        ("en", "How do I make my own kind of error?", "errors", "name their own exceptions"),
        (
            "en",
            "How do I make something run whether or not there was an error?",
            "errors",
            "executed under all circumstances",
        ),
        (
            "en",
            "How do I make sure a file is closed after use?",
            "inputoutput",
            "file is properly closed after its suite finishes",
        ),
        (
            "en",
            "How do I put variables into a string?",
            "inputoutput",
            "include the value of Python expressions inside a string",
        ),
        (
            "en",
            "How do I save a dictionary to a file?",
            "inputoutput",
            "take Python data hierarchies",
        ),
        (
            "en",
            "How do I get the last character of a text?",
            "introduction",
            "start counting from the right",
        ),
        (
            "en",
            "How do I get the remainder of a division?",
            "introduction",
            "to calculate the remainder",
        ),
        (
            "en",
            "Where does Python look for the files that I import?",
            "modules",
            "sys.path` is initialized from these locations",
        ),
        (
            "en",
            "How do I run a file both as a program and as a library?",
            "modules",
            "usable as a script as well as an importable module",
        ),
        (
            "en",
            "Why is 0.1 + 0.2 not 0.3?",
            "floatingpoint",
            "most decimal fractions cannot be",
        ),
        (
            "en",
            "How do I keep the packages of one project apart from another's?",
            "venv",
            "self-contained directory tree",
        ),
        (
            "en",
            "How do I write down which packages a project needs?",
            "venv",
            "A common convention is to put this list",
        ),
        ("en", "How do I make an attribute private?", "classes", "don't exist in Python"),
        (
            "en",
            "Why do all my objects share one list?",
            "classes",
            "should not be used as a class variable",
        ),
        (
            "en",
            "How do I call a method of the parent class?",
            "classes",
            "simple way to call the base class method",
        ),
        (
            "en",
            "How can an object be used in a for loop?",
            "classes",
            "Define an :meth:`__iter__` method",
        ),
        (
            "en",
            "How do I measure how fast a piece of code is?",
            "stdlib",
            "relative performance of different approaches",
        ),
        ("zh", "怎样提前结束循环？", "controlflow", "breaks out of the innermost"),
        (
            "zh",
            "怎样给参数设默认值？",
            "controlflow",
            "specify a default value for one or more arguments",
        ),
        (
            "zh",
            "函数可以接受任意多个参数吗？",
            "controlflow",
            "can be called with an arbitrary number of arguments",
        ),
        ("zh", "怎样去掉重复的元素？", "datastructures", "eliminating duplicate entries"),
        (
            "zh",
            "怎样同时遍历两个列表？",
            "datastructures",
            "loop over two or more sequences at the same time",
        ),
        (
            "zh",
            "只有一个元素的元组怎么写？",
            "datastructures",
            "a tuple with one item is constructed",
        ),
        ("zh", "怎样捕获异常？", "errors", "programs that handle selected exceptions"),
        ("zh", "怎样定义自己的异常？", "errors", "name their own exceptions"),
        (
            "zh",
            "怎样保证文件用完后会关闭？",
            "inputoutput",
            "file is properly closed after its suite finishes",
        ),
        (
            "zh",
            "怎样在字符串里插入变量的值？",
            "inputoutput",
            "include the value of Python expressions inside a string",
        ),
        ("zh", "怎样把数据保存成 JSON？", "inputoutput", "take Python data hierarchies"),
        ("zh", "怎样求除法的余数？", "introduction", "to calculate the remainder"),
        (
            "zh",
            "导入模块时 Python 在哪里找文件？",
            "modules",
            "sys.path` is initialized from these locations",
        ),
        (
            "zh",
            "为什么浮点数不精确？",
            "floatingpoint",
            "most decimal fractions cannot be",
        ),
        ("zh", "怎样创建虚拟环境？", "venv", "self-contained directory tree"),
    )
)
