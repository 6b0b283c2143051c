"""One HTML file that shows the content of a Chroma collection and how well it answers questions.

    from nexusflow_integrations.report import Question, write_report

    write_report(collection, "report.html", questions=["how do I ...?"])

The file needs no network. It shows a map of the collection, a retrieval inspector, scores,
near-duplicates, outliers and the cost, in any browser, in light and dark mode.
"""

from __future__ import annotations

from nexusflow_integrations.report.measure import Projection
from nexusflow_integrations.report.report import Question, Report, write_report

__all__ = ["Projection", "Question", "Report", "write_report"]
