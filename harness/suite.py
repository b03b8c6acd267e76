"""What a judging suite promises, and where suites are found.

A suite is an importable package of tests with one `SUITE = Suite(…)`, announced under the entry
point group `harness.suites`. The built-in ones come through the same door.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from harness.errors import BrokenSuiteError, SuiteError, one_line
from harness.evidence import RELEASE_SCOPE, MeasureKey, Unit

GROUP = "harness.suites"


@dataclass(frozen=True, slots=True)
class Promise:
    """A measure that a suite records in every run, once per variant or once per release.

    One with `in_manifest` is part of what a release promises to the programs that use it. One that is `optional` may
    be missing where a run cannot say it, unless the policy limits it. One that is `against_baseline` is about those
    variants that the release which is served now has as well.
    """

    name: str
    unit: Unit
    per_variant: bool = True
    in_manifest: bool = False
    optional: bool = False
    against_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite's name and the measures it promises."""

    name: str
    measures: tuple[Promise, ...]

    def promised(self, variants: Sequence[str], baseline: Collection[str] = ()) -> dict[MeasureKey, Promise]:
        """List every measure that evidence about these variants must hold.

        Args:
            variants: those of the candidate.
            baseline: those of the release that it is compared with; none if there is no such release.
        """
        return {
            MeasureKey(self.name, scope, promise.name): promise
            for promise in self.measures
            for scope in self._scopes(promise, variants, baseline)
        }

    @staticmethod
    def _scopes(promise: Promise, variants: Sequence[str], baseline: Collection[str]) -> Sequence[str]:
        if promise.against_baseline:
            variants = [variant for variant in variants if variant in baseline]
        if promise.per_variant:
            return variants
        return (RELEASE_SCOPE,) if variants else ()


@dataclass(frozen=True, slots=True)
class FoundSuite:
    """An installed suite: its declaration and the package that holds its tests."""

    suite: Suite
    package: str


def discover(announced: Iterable[EntryPoint] | None = None) -> dict[str, FoundSuite]:
    """Load every announced suite, by name, sorted.

    Raises:
        BrokenSuiteError: one fails to import.
        SuiteError: one is no `Suite`, or claims a name that another has.
    """
    found: dict[str, FoundSuite] = {}
    origin: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP) if announced is None else announced, key=lambda entry: entry.name):
        here = f"{entry.value} from {entry.dist.name if entry.dist else 'an unnamed distribution'}"
        suite = _load(entry, here)
        if suite.name in found:
            message = f"two suites are named {suite.name!r}: {origin[suite.name]} and {here}. Uninstall one."
            raise SuiteError(message)
        found[suite.name] = FoundSuite(suite, entry.module)
        origin[suite.name] = here
    if not found:
        message = f"no suite is installed (entry point group {GROUP!r}). Install the harness with pip; a bare copy of its folder has none."
        raise SuiteError(message)
    return found


def _load(entry: EntryPoint, here: str) -> Suite:
    try:
        suite = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as err:  # a third party's module may raise anything, also SystemExit and pytest's Skipped
        message = f"the suite {entry.name!r} ({here}) does not import: {type(err).__name__}: {one_line(err)}. Repair or uninstall it."
        raise BrokenSuiteError(message) from err
    if not isinstance(suite, Suite) or suite.name != entry.name:
        message = f"the entry point {entry.name!r} ({here}) is no Suite of that name. Repair or uninstall it."
        raise SuiteError(message)
    return suite


def choose(found: dict[str, FoundSuite], names: Sequence[str]) -> dict[str, FoundSuite]:
    """Pick suites by name; all of them when no name is given.

    Raises:
        SuiteError: a name is unknown.
    """
    for name in names:
        if name not in found:
            message = f"there is no suite {name!r}. Installed: {', '.join(found)}."
            raise SuiteError(message)
    return {name: suite for name, suite in found.items() if not names or name in names}
