"""The report: tables and one html page, made from records alone."""

from workbench.report.page import page
from workbench.report.render import readme_block, table

__all__ = ["page", "readme_block", "table"]
