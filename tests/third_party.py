"""A third party's suites as pip would install them, and a candidate that they can judge without opening it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from harness.evidence import Unit
from harness.judge import Question
from harness.suite import FoundSuite, Promise, Suite

SUITE = """\
from harness.evidence import Unit
from harness.suite import Promise, Suite

SUITE = Suite("{name}", (Promise("worst", Unit.LOGIT, per_variant=False),))
"""
# Every test module begins with this.
PRELUDE = """\
import os, signal, subprocess, sys, unittest
from pathlib import Path
import pytest
from harness.evidence import Unit

"""
GOOD = """\
def test_good(record_measure):
    record_measure("worst", 0.5, unit=Unit.LOGIT)
"""
LIMIT = "{ max = 1 }"


@dataclass
class ThirdParty:
    """A folder for PYTHONPATH in which suites are installed, each a package with an entry point."""

    site: Path
    policy: Path
    candidate: Path
    names: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> ThirdParty:
        made = cls(folder / "site", folder / "policy.toml", folder / "candidate")
        made.site.mkdir(parents=True)
        made.candidate.mkdir()
        (made.candidate / "model.onnx").write_bytes(b"not opened by these suites")
        for name in ("config.json", "tokenizer.json"):
            (made.candidate / name).write_text("{}", encoding="utf-8")
        return made

    def install(
        self, name: str, tests: str = GOOD, *, declaration: str = SUITE, distribution: str = "acme", **files: str
    ) -> None:
        """Install a suite of one test module; `files` are further modules of its package, by name."""
        package = self.site / name
        package.mkdir()
        (package / "__init__.py").write_text(declaration.replace("{name}", name), encoding="utf-8")
        (package / f"test_{name}.py").write_text(PRELUDE + tests, encoding="utf-8")
        for module, text in files.items():
            (package / f"{module}.py").write_text(PRELUDE + text, encoding="utf-8")
        self.announce(name, f"{name}:SUITE", distribution)
        self.names.append(name)
        limits = "".join(f"[limits.{suite}.release]\nworst = {LIMIT}\n" for suite in self.names)
        self.policy.write_text(limits, encoding="utf-8")

    def announce(self, name: str, value: str, distribution: str) -> None:
        """Add an entry point to a distribution."""
        folder = self.site / f"{distribution}-1.0.dist-info"
        folder.mkdir(exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (folder / "METADATA").write_text(metadata, encoding="utf-8")
        entries = folder / "entry_points.txt"
        before = entries.read_text(encoding="utf-8") if entries.exists() else "[harness.suites]\n"
        entries.write_text(f"{before}{name} = {value}\n", encoding="utf-8")

    def suites(self) -> dict[str, FoundSuite]:
        """What `discover` would find of these, without importing them here."""
        promise = Promise("worst", Unit.LOGIT, per_variant=False)
        return {name: FoundSuite(Suite(name, (promise,)), name) for name in self.names}

    def question(self) -> Question:
        """Ask all of the suites."""
        return Question(
            candidate=self.candidate,
            reference=self.site,
            data=(),
            policy=self.policy,
            suites=self.suites(),
            state=self.site.parent / "state",
        )

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment with the suites on the path."""
        return {**os.environ, "PYTHONPATH": self.python_path(), **more}

    def python_path(self) -> str:
        """PYTHONPATH as it is, with the suites in front."""
        before = os.environ.get("PYTHONPATH")
        return os.pathsep.join([str(self.site), before] if before else [str(self.site)])

    def options(self) -> list[str]:
        """What a person types behind `pytest`."""
        return [
            "--candidate", str(self.candidate), "--reference", str(self.site), "--harness-policy", str(self.policy),
            "--pyargs", *self.names,
        ]  # fmt: skip


def rewrite(evidence: Path, **changes: object) -> str:
    """The text of an evidence file with some of its keys changed."""
    return json.dumps({**json.loads(evidence.read_text(encoding="utf-8")), **changes})
