"""Policy files: TOML in, `Policy` out. Strict, because a limit that is misspelt protects nobody.

    [limits.parity.int8]
    label_agreement = { min = 0.99 }
    mean_logit_difference = { max = 0.1 }
    p95_ms = "reported"                        # no limit, only shown
    batch_ratio = { max = 1, undecided = "warn" }   # where it cannot be told: a warning, not INCOMPLETE

    [[waivers]]
    measure = "latency.int8.cold_start_ratio"
    reason = "the build machine's disk is being replaced"
    expires = 2026-12-31

A user's file changes the defaults of the package entry by entry.
"""

from __future__ import annotations

import datetime
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.errors import PolicyError, one_line
from harness.evidence import MeasureKey
from harness.verdict import Limit, Policy, Waiver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SECTIONS = ("limits", "waivers")
# What a measure is that cannot be told from its limit: an open question (INCOMPLETE), or a warning.
_OPEN, _WARN = "incomplete", "warn"
_WAIVER_KEYS = ("measure", "reason", "expires")


def load_policy(path: Path | None, promised: Collection[MeasureKey], today: datetime.date) -> Policy:
    """Read the defaults and, over them, a user's file.

    Args:
        path: the user's file, or None for the defaults alone.
        promised: every measure that the chosen suites could record about any variant.
        today: the day against which waivers expire.

    Raises:
        PolicyError: the file is missing or is no TOML; a key is unknown; a limit is no number or
            contradicts itself; a waiver has expired, lacks its reason or names no measure; a promised
            measure has no limit. Names file, line and key.
    """
    default = _PolicyFile("the default policy", files("harness").joinpath("policy.toml").read_text(encoding="utf-8"))
    limits = {key: limit for key, limit in default.limits(None).items() if key in promised}
    waivers: tuple[Waiver, ...] = ()
    if path is not None:
        user = _PolicyFile(str(path), _read(path))
        limits.update(user.limits(promised))
        waivers = user.waivers(promised, today)
    if lacking := sorted(key for key in promised if key not in limits):
        first = lacking[0]
        message = (
            f"{path or 'the default policy'} sets no limit for {len(lacking)} promised measures, {first} first. "
            f'Add under [limits.{first.suite}.{first.scope}]: {first.name} = {{ max = … }}, or "reported".'
        )
        raise PolicyError(message)
    return Policy(limits, waivers)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        message = f"the policy {path} cannot be read ({err.strerror}). Name a TOML file (--policy FILE)."
        raise PolicyError(message) from err
    except UnicodeDecodeError as err:
        message = f"the policy {path} is not UTF-8 text (byte {err.start}). Save it as UTF-8."
        raise PolicyError(message) from err


class _PolicyFile:
    """One policy text, with the means to say where in it something is wrong."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines = text.splitlines()
        try:
            self._content: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as err:  # a number of 5000 digits is a plain ValueError
            message = f"{name} is not valid TOML: {one_line(err)}."
            raise PolicyError(message) from err
        for section in self._content:
            if section not in _SECTIONS:
                raise self._error((section,), f"unknown key; known are {' and '.join(_SECTIONS)}")

    def limits(self, promised: Collection[MeasureKey] | None) -> dict[MeasureKey, Limit]:
        found = {}
        for suite, scopes in self._table(("limits",), self._content.get("limits", {})).items():
            self._check_known(("limits", suite), scopes, promised)
            for scope, entries in self._table(("limits", suite), scopes).items():
                self._check_known(("limits", suite, scope), entries, promised)
                for name, entry in self._table(("limits", suite, scope), entries).items():
                    path = ("limits", suite, scope, name)
                    key = MeasureKey(suite, scope, name)
                    if promised is not None and key not in promised:
                        raise self._error(path, f"no chosen suite has such a measure; {_nearest(key, promised)}")
                    found[key] = self._limit(path, entry)
        return found

    def _check_known(self, path: tuple[str, ...], content: object, promised: Collection[MeasureKey] | None) -> None:
        """Refuse an empty table that no measure could stand in; one with entries is refused at the entry."""
        known = promised is None or any((key.suite, key.scope)[: len(path) - 1] == path[1:] for key in promised)
        if content == {} and not known:
            raise self._error(path, "no chosen suite has measures here; delete it or correct its name")

    def _limit(self, path: tuple[str, ...], entry: object) -> Limit:
        if entry == "reported":
            return Limit()
        if not isinstance(entry, dict) or set(entry) <= {"undecided"}:
            raise self._error(
                path, f'a limit is {{ min = … }}, {{ max = … }} or "reported", not {one_line(entry, 60)!r}'
            )
        choice = entry.get("undecided", _OPEN)
        if choice not in (_OPEN, _WARN):
            raise self._error(path, f'undecided is "{_OPEN}" or "{_WARN}", not {one_line(choice, 60)!r}')
        for bound, value in entry.items():
            if bound == "undecided":
                continue
            if bound not in {"min", "max"}:
                raise self._error(path, f"unknown key {one_line(bound, 60)!r}; a limit has min, max or both")
            if not _is_finite_number(value):
                raise self._error(path, f"{bound} must be a finite number, not {one_line(value, 60)!r}")
        try:
            return Limit(entry.get("min"), entry.get("max"), warn_undecided=choice == _WARN)
        except ValueError as err:
            raise self._error(path, str(err)) from err

    def waivers(self, promised: Collection[MeasureKey], today: datetime.date) -> tuple[Waiver, ...]:
        entries = self._content.get("waivers", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(("waivers",), "waivers are written as [[waivers]] tables")
        return tuple(self._waiver(number, entry, promised, today) for number, entry in enumerate(entries))

    def _waiver(
        self, number: int, entry: Mapping[str, Any], promised: Collection[MeasureKey], today: datetime.date
    ) -> Waiver:
        path = ("waivers", "measure")
        if set(entry) != set(_WAIVER_KEYS):
            keys = ", ".join(_WAIVER_KEYS)
            raise self._error(
                ("waivers",), f"a waiver has exactly the keys {keys}, not {one_line(sorted(entry))}", number
            )
        measure, reason, expires = (entry[key] for key in _WAIVER_KEYS)
        key = next((key for key in promised if str(key) == measure), None)
        if key is None:
            raise self._error(path, f"{one_line(measure, 80)!r} matches no measure; write suite.scope.name", number)
        if not isinstance(reason, str) or not reason.strip():
            raise self._error(path, f"the waiver for {measure} gives no reason", number)
        if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
            raise self._error(path, f"the waiver for {measure} needs a date, as in expires = 2026-12-31", number)
        if expires < today:
            why = f"the waiver for {measure} expired on {expires}; keep the limit or renew the waiver"
            raise self._error(path, why, number)
        return Waiver(key, reason, expires)

    def _table(self, path: tuple[str, ...], content: object) -> Mapping[str, Any]:
        if not isinstance(content, dict):
            raise self._error(path, "must be a table; limits are written under [limits.SUITE.SCOPE]")
        return content

    def _error(self, path: tuple[str, ...], why: str, number: int = 0) -> PolicyError:
        line = self._line_of(path, number)
        stop = "" if why.endswith("?") else "."
        return PolicyError(f"{self._name}{f' line {line}' if line else ''}, {'.'.join(path)}: {why}{stop}")

    def _line_of(self, path: tuple[str, ...], number: int) -> int | None:
        """Find the line that a key stands on: below its table's header, or a header itself, or dotted.

        In a list of tables, such as the waivers, it is that of the table with this number.
        """
        found = self._lines_of(path)
        return found[min(number, len(found) - 1)] if found else None

    def _lines_of(self, path: tuple[str, ...]) -> list[int]:
        found = []
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            assigned = re.match(r"\s*([^#=\[]+?)\s*=", line)
            if header:
                table = _dotted(header[1])
            if (header and table == path) or (assigned and (*table, *_dotted(assigned[1])) == path):
                found.append(number)
        # a table written inline: the lines that name the last part, in more than a comment
        last = re.compile(rf"(?<![\w-]){re.escape(path[-1])}(?![\w-])")
        return found or [number for number, line in enumerate(self._lines, 1) if last.search(line.partition("#")[0])]


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _dotted(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _nearest(key: MeasureKey, promised: Iterable[MeasureKey]) -> str:
    import difflib

    near = difflib.get_close_matches(str(key), [str(other) for other in promised], n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "see `harness release --help` for the suites"
