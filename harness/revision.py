"""Which git commit a folder is at. Asks git, runs none of its hooks, and changes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.history import Revision

_TIME_LIMIT_S = 10.0
# Nothing that a repository's configuration names is to run here, and no lock of it is to be taken.
_GIT = ("git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")


def revision_of(folder: Path) -> Revision | None:
    """Tell the commit of the repository that a folder is in, and whether its tracked files differ from it.

    Returns:
        None outside a repository, before the first commit, without git, and where git does not answer in time.
    """
    commit = _ask(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    status = _ask(folder, "status", "--porcelain", "--untracked-files=no")
    return Revision(commit, None if status is None else status != "")


def resolved(folder: Path, name: str) -> str | None:
    """Tell the commit that a branch, a tag or an expression such as `HEAD~2` means; None where it means none."""
    # with this behind it no name is an option
    return _ask(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") or None


def _ask(folder: Path, *question: str) -> str | None:
    try:
        answer = subprocess.run(  # noqa: S603  # arguments of our own; a revision's name is kept from being an option
            (*_GIT, *question),
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIME_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
