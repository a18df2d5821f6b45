"""The report of runs as one HTML page, without links to anything else."""

from verl_prism.report.page.render import write_report

__all__ = ["write_report"]
