"""`summary.md`: one run as Markdown, short enough for the summary of a CI job or a comment on a change.

What a run quotes may be anybody's text. It stands in `<code>` with its punctuation as character references: so it can
neither form Markdown or HTML, nor link, nor mention a person. Decides nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.account import Account
from harness.documents import write_text
from harness.highlights import (
    gauge,
    headlines,
    interval_text,
    limit_text,
    next_steps,
    sentence,
    value_text,
    variants,
    worst_first,
)
from harness.report import reason
from harness.verdict import Decision, Finding, Standing
from harness.visible import visible

SUMMARY_FILE = "summary.md"
# A comment on GitHub holds 65,536 characters, a job's summary 1 MiB.
LARGEST_SUMMARY = 60_000
# A job that comments on every push finds its last comment by this.
MARK = "<!-- harness-summary -->"
_DECISION_SYMBOLS = {Decision.ACCEPTED: "✅", Decision.REJECTED: "❌", Decision.INCOMPLETE: "⚠️"}
_LONGEST_QUOTE = 300
# CommonMark 0.31, section 2.5: character references make text, never structure. What stays as it is, for whoever reads
# the file itself, means nothing within a line: but a full stop after www, of which GitHub makes a link, and an underscore
# that does not stand within a word, of which comes emphasis.
_HARMLESS = frozenset(",;()-'")
_TELLING = re.compile(
    rf"[{re.escape(''.join(set(string.punctuation) - _HARMLESS - set('._')))}]"
    r"|(?<=www)\.|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that belong together; what does not fit is counted instead."""

    before: str
    rows: tuple[str, ...]
    after: str = ""


def write_summary(folder: Path, account: Account) -> Path:
    """Write the summary into a run's folder.

    Raises:
        OSError: the file system refuses.
    """
    path = folder / SUMMARY_FILE
    write_text(path, render(account))
    return path


def render(account: Account) -> str:
    """Write the summary: the decision and its reasons first, at most `LARGEST_SUMMARY` bytes in all."""
    blocks = [
        _head(account),
        _broken(account),
        _undecided(account),
        _glance(account),
        _problems(account),
        _measures(account),
        _compared(account),
    ]
    text, left = "", LARGEST_SUMMARY
    for block in blocks:
        if block.rows:
            written = _fitted(block, left)
            text, left = text + written, left - len(written.encode())
    return text


def _fitted(block: Block, left: int) -> str:
    """Write as many of a block's rows as fit, nothing where not even one does."""
    # room for the sentence that counts the rest
    room = left - len(f"{block.before}{block.after}".encode()) - 120
    kept: list[str] = []
    for row in block.rows:
        room -= len(row.encode()) + 1
        if room < 0:
            break
        kept.append(row)
    if not kept:
        return ""
    rest = len(block.rows) - len(kept)
    more = f"\n{rest:,} more: see report.html\n" if rest else ""
    return f"{block.before}{''.join(f'{row}{chr(10)}' for row in kept)}{more}{block.after}"


def quoted(text: str) -> str:
    """Write a text that may be anybody's."""
    return f"<code>{_plain(text)}</code>"


def _plain(text: str) -> str:
    return _TELLING.sub(lambda found: f"&#{ord(found[0])};", visible(text, _LONGEST_QUOTE))


def _head(account: Account) -> Block:
    subject = account.subject
    rows = [
        MARK,
        f"## {_DECISION_SYMBOLS[account.decision]} {account.decision.value}",
        "",
        f"**{_plain(sentence(account))}**",
        "",
        f"{quoted(subject.candidate)} against the PyTorch model {quoted(subject.reference)}, run {quoted(account.run)}",
        "",
    ]
    steps = [f"{_plain(step.says)}{f': {quoted(step.quotes)}' if step.quotes else ''}" for step in next_steps(account)]
    # one block that always fits: a handful of lines of limited length
    return Block("", (*rows, *(f"{place}. {step}" for place, step in enumerate(steps, 1))))


def _broken(account: Account) -> Block:
    rows = [_row(finding, because=True) for finding in worst_first(account.broken)]
    return Block(f"\n### Broken limits\n\n{_titles('measure', 'value', 'limit', 'over', 'why')}", tuple(rows))


def _undecided(account: Account) -> Block:
    rows = [_row(finding, because=False) for finding in worst_first(account.undecided)]
    return Block(f"\n### Could not be told\n\n{_titles('measure', 'value', 'limit', 'used', 'outcome')}", tuple(rows))


def _titles(*titles: str) -> str:
    return f"{_table_row(titles)}\n{_table_row('---' for _ in titles)}\n"


def _table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(finding: Finding, *, because: bool) -> str:
    cells = [quoted(str(finding.measure.key)), *map(_plain, (_value(finding), limit_text(finding)))]
    cells.append(_plain(gauge(finding).text))
    if because:
        why = reason(finding)
        cells.append(quoted(why) if why else "")
    else:
        cells.append(finding.standing.value)
    return _table_row(cells)


def _value(finding: Finding) -> str:
    interval = interval_text(finding)
    return f"{value_text(finding)}{f' ({interval})' if interval else ''}"


def _glance(account: Account) -> Block:
    scopes = variants(account)
    rows = []
    for headline in headlines(account):
        found = [headline.findings.get(scope) for scope in scopes]
        rows.append(_table_row([headline.title, *map(_glance_cell, found)]))
    return Block(f"\n### At a glance\n\n{_titles('', *map(_plain, scopes))}", tuple(rows))


def _glance_cell(finding: Finding | None) -> str:
    if finding is None:
        return ""
    limited = finding.limit is not None and not finding.limit.reported_only
    text = _plain(f"{value_text(finding)}{f' ({limit_text(finding)})' if limited else ''}")
    if finding.rejects:
        return f"**{text}** ❌"
    return f"**{text}** ⚠️" if finding.standing in {Standing.UNDECIDED, Standing.WARNED} else text


def _problems(account: Account) -> Block:
    problems = account.other_problems
    return _folded(f"Problems ({len(problems):,})", "", [f"- {quoted(one)}" for one in problems])


def _measures(account: Account) -> Block:
    rows = [_row(finding, because=False) for finding in account.findings]
    titles = _titles("measure", "value", "limit", "used", "outcome")
    return _folded(f"All measures ({len(account.findings):,})", titles, rows)


def _compared(account: Account) -> Block:
    subject, facts = account.subject, account.environment
    rows = [
        f"- candidate {quoted(subject.candidate_digest)}",
        f"- reference {quoted(subject.reference_digest)}",
        *([f"- last release {quoted(subject.baseline_digest)}"] if subject.baseline else []),
        *(f"- data {quoted(path)} {quoted(digest)}" for path, digest in subject.data.items()),
        *(f"- policy {quoted(path)} {quoted(digest)}" for path, digest in subject.policy.items()),
        *(f"- {_plain(name)} {quoted(value)}" for name, value in facts.items()),
    ]
    return _folded("What was compared, where, with which versions", "", rows)


def _folded(title: str, before: str, rows: Sequence[str]) -> Block:
    return Block(f"\n<details><summary>{title}</summary>\n\n{before}", tuple(rows), "\n</details>\n")
