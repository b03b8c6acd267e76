"""`report.html`: one run on one page, which needs no network, no script and no other file.

Every value comes from what the run left in its folder; nothing here decides. Text of queries, labels and paths may be
anybody's: it is made visible (`harness.visible`) and escaped wherever it is written, and the page's own policy lets it
load nothing and run nothing but the one script that is in it.
"""

from .page import REPORT_FILE, render, write_webreport
from .plots import HistoryLine, HistoryPoint

__all__ = ["REPORT_FILE", "HistoryLine", "HistoryPoint", "render", "write_webreport"]
