"""The demo: three small models of three forms, trained from nothing on Chinese text, and a report on them."""

from .report import write_report
from .runner import run_demo, summary

__all__ = ["run_demo", "summary", "write_report"]
