"""One HTML file that shows what a Chroma collection holds and how it answers.

    from nexusflow_integrations.report import Question, write_report

    write_report(collection, "report.html", questions=["how do I ...?"])

The file needs no network: a map of the collection, a retrieval inspector, scores, near-duplicates,
outliers and the cost, in any browser, light and dark.
"""

from __future__ import annotations

from nexusflow_integrations.report.measure import Projection
from nexusflow_integrations.report.report import Question, Report, write_report

__all__ = ["Projection", "Question", "Report", "write_report"]
