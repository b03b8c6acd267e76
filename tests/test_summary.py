"""The summary is short, says the decision first, and lets no quoted text be more than text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from made_reports import HOSTILE, document, finding, findings_of, hostile_document, made_run, open_finding, open_problem
from markdown_it import MarkdownIt

from harness.account import read_account
from harness.summary import LARGEST_SUMMARY, MARK, quoted, render, write_summary
from harness.visible import visible


class Reader(HTMLParser):
    """Collects the elements, their attributes and the text of a rendered summary."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data


def rendered(markdown) -> Reader:
    """Render as GitHub does: CommonMark with HTML, tables, links of bare addresses."""
    reader = Reader()
    reader.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
    return reader


def summary_of(tmp_path, verdict) -> str:
    return render(read_account(made_run(tmp_path, verdict)))


def test_the_decision_comes_first(tmp_path):
    """The first lines are the decision, the sentence behind it and what to do; then the broken limits."""
    lines = [line for line in summary_of(tmp_path, document(findings_of(flipped=3.0))).splitlines() if line]
    assert lines[0] == MARK
    assert "REJECTED" in lines[1]
    assert lines[2] == "**1 limit of 23 measures is broken.**"
    assert lines.index("### Broken limits") < lines.index("### At a glance")


def test_every_measure_is_in_it(tmp_path):
    """Each measure of a normal run stands in the table with value, limit and outcome."""
    text = rendered(summary_of(tmp_path, document(findings_of()))).text
    for one in findings_of():
        assert f"{one['suite']}.{one['scope']}.{one['name']}" in text


def test_what_cannot_be_told_stands_first(tmp_path):
    """An undecided run says that it is not refused, names the measure with its interval, and what to do about it."""
    markdown = summary_of(tmp_path, document([*findings_of(), open_finding()], [open_problem()]))
    lines = [line for line in rendered(markdown).text.splitlines() if line]
    assert lines[0].endswith("INCOMPLETE")
    assert lines[1].startswith("Neither accepted nor refused: no limit is broken, but for 1 of 24 measures")
    place = lines.index("Could not be told")
    assert place < lines.index("At a glance")
    row = lines[place:].index("latency.int8.ratio_to_last_release") + place
    shown = ["1.08 × (1.03 to 1.17)", "≤ 1.1", "+3 % to +17 %, +10 % allowed", "undecided"]  # noqa: RUF001  # meant
    assert lines[row + 1 : row + 5] == shown
    assert "Problems" not in markdown
    assert "**1.08 × (≤ 1.1)** ⚠️" in markdown  # noqa: RUF001


def test_the_last_release_is_named(tmp_path):
    """What the candidate was compared with is told by its digest."""
    digest = f"sha256:{'b' * 64}"
    markdown = summary_of(tmp_path, document(findings_of(), baseline="models/bus", baseline_digest=digest))
    assert f"last release {digest}" in rendered(markdown).text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quoted_text_is_only_text(text):
    """Whatever is quoted renders as one `<code>` element, without links, mentions or attributes."""
    for markdown in (quoted(text), f"| a | b |\n| --- | --- |\n| {quoted(text)} | x |", f"- {quoted(text)}"):
        page = rendered(markdown)
        assert page.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
        assert page.attributes == set()
        assert " ".join(visible(text, 300).split()) in " ".join(page.text.split())
    assert "@" not in quoted(text)
    assert "://" not in quoted(text)
    assert "www." not in quoted(text).lower()
    assert "\n" not in quoted(text)


def test_a_hostile_run_is_only_text(tmp_path):
    """A run whose every text is an attack renders the elements of the summary and nothing else."""
    markdown = summary_of(tmp_path, hostile_document())
    page = rendered(markdown)
    assert page.tags <= {
        "h2", "h3", "p", "strong", "code", "table", "thead", "tbody", "tr", "th", "td", "ol", "ul", "li", "details", "summary",
    }  # fmt: skip
    assert not {value for name, value in page.attributes if name in {"href", "src"}}
    assert markdown.count("<details>") == markdown.count("</details>")


def test_it_fits_a_comment(tmp_path):
    """Thousands of measures and problems are counted instead of listed, and the file stays below the limit."""
    many = [finding(f"s.int8.m{place}", 2.0, "logit", (None, 1), "broken") for place in range(5000)]
    verdict = document(many, [f"problem {place} {'x' * 900}" for place in range(3000)])
    markdown = summary_of(tmp_path, verdict)
    assert len(markdown.encode()) <= LARGEST_SUMMARY
    assert "more: see report.html" in markdown
    assert "REJECTED" in markdown.splitlines()[1]


@pytest.mark.parametrize("problems", [["the session was killed after 900 s"], list(HOSTILE)])
def test_a_run_without_measures(problems, tmp_path):
    """A crash before any measure is told with its problems."""
    folder = made_run(tmp_path, document([], problems))
    text = write_summary(folder, read_account(folder)).read_text(encoding="utf-8")
    assert "INCOMPLETE" in text
    assert f"Problems ({len(problems)})" in text
    assert quoted(problems[0]) in text
