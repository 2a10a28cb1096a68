"""One offline HTML file about a run, with a verdict first."""

from nolabel.tools.report.page import build_report

__all__ = ["build_report"]
