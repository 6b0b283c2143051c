"""Measure which settings find the answers in your own documents, and choose the best ones.

The settings are the size of the vectors, how passages are cut, instructions, and keywords.

    from nexusflow_integrations.tune import tune

    result = tune({"guide.md": text}, client=NexusFlow(cache=True))
    print(result.sentence())
    result.settings.save("tuned.json")

Questions can be given, made from the documents, or written by a chat model.
"""

from __future__ import annotations

from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.cli.rag.pipeline import ChatError, ChatPrice
from nexusflow_integrations.tune.questions import Answer, Document, Question, read_questions
from nexusflow_integrations.tune.result import TuneResult
from nexusflow_integrations.tune.run import Plan, PlannedStage, Tuning, tune
from nexusflow_integrations.tune.scores import MEASURES, Interval
from nexusflow_integrations.tune.search import Measured
from nexusflow_integrations.tune.settings import Cutting, Setting
from nexusflow_integrations.tune.written import ChatModel, ChatUsage, PlannedChat

__all__ = [
    "MEASURES",
    "Answer",
    "ChatError",
    "ChatModel",
    "ChatPrice",
    "ChatUsage",
    "Cutting",
    "Document",
    "Interval",
    "Measured",
    "Plan",
    "PlannedChat",
    "PlannedStage",
    "Question",
    "Setting",
    "TuneResult",
    "TunedSettings",
    "Tuning",
    "read_questions",
    "tune",
]
