"""The report: tables and one html page, made from records alone."""

from workbench.report.calibrators import calibrators
from workbench.report.claims import write as write_claims
from workbench.report.network_speed import beside
from workbench.report.page import page
from workbench.report.render import bench_table, markdown, readme_block, table

__all__ = [
    "bench_table",
    "beside",
    "calibrators",
    "markdown",
    "page",
    "readme_block",
    "table",
    "write_claims",
]
