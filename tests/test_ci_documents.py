"""The CI documents are what they say: valid, with commands that exist, and a history that survives."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from harness.cli import build_parser

FOLDER = Path(__file__).parents[1] / "docs" / "ci"
DOCUMENTS = ("github-actions.yml", "gitlab-ci.yml")
REPORTS = ("report.html", "summary.md", "junit.xml", "verdict.json")


def texts_in(value) -> list[str]:
    """Every string of a document, keys left out."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts_in(one)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_gate_is_called_as_it_can_be(name):
    """The release job runs `tox -e release` with options that `harness release` has, and nothing hides its exit code."""
    found = [text for text in texts_in(yaml.safe_load((FOLDER / name).read_text("utf-8"))) if "tox -e release" in text]
    (command,) = found
    assert not re.search(r"\|\||;|\bset \+e\b", command)
    options = build_parser().parse_args(
        ["release", "--quantize", "--verify", *shlex.split(command.partition(" -- ")[2])]
    )
    assert options.line == "my_ner"


def test_the_commands_of_the_page_exist():
    """Every `harness` command that the page names is one."""
    page = (FOLDER / "README.md").read_text("utf-8")
    commands = re.findall(r"-- harness (.+)", page)
    assert commands
    for command in commands:
        build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_that_runs_a_model_may_write(name):
    """Only jobs that run no model hold a token that writes."""
    document = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    jobs = document.get("jobs", document)
    assert "TOKEN" not in str(jobs["release"])
    if name == "github-actions.yml":
        assert document["permissions"] == {"contents": "read"}
        assert "permissions" not in jobs["release"]
        writers = {job for job, content in jobs.items() if "write" in str(content.get("permissions", ""))}
        assert writers == {"comment", "keep-history"}
        assert not any("tox" in text or "pip" in text for job in writers for text in texts_in(jobs[job]))


def test_github_uploads_every_report():
    """The artifact of a run has all that tells about it."""
    uploaded = (FOLDER / "github-actions.yml").read_text("utf-8")
    assert all(f"results/*Z-*/{name}" in uploaded for name in REPORTS)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clone with a remote, as a CI job has it; no configuration of this machine's is read."""
    for variable, value in {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "remote.git"), "clone")
    (clone / "code").write_text("code", "utf-8")
    (clone / ".gitignore").write_text("results/*\n", "utf-8")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "code")
    git(clone, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    return clone


def git(folder, *arguments) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def history(folder, *arguments):
    return subprocess.run(
        [str(FOLDER / "history.sh"), *arguments], cwd=folder, check=False, capture_output=True, text=True
    )


def leave(clone, line):
    """What a judged run leaves."""
    (clone / "results" / "state" / "bus").mkdir(parents=True, exist_ok=True)
    with (clone / "results" / "history.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    (clone / "results" / "state" / "bus" / "queries.jsonl").write_text(f"{line}\n", "utf-8")
    (clone / "results" / "20261123T120000.000Z-0a1b2c").mkdir(exist_ok=True)


def test_a_history_survives_from_job_to_job(checkout):
    """What one job keeps the next one has, run after run; the branch holds it alone and shares no commit with the code."""
    first = history(checkout, "fetch")
    assert (first.returncode, "begins with this run" in first.stderr) == (0, True)
    for count in (1, 2):
        leave(checkout, f"run {count}")
        kept = history(checkout, "keep", f"Run {count}")
        assert kept.returncode == 0, kept.stderr
        shutil.rmtree(checkout / "results")
        assert history(checkout, "fetch").returncode == 0
        lines = (checkout / "results" / "history.jsonl").read_text("utf-8").splitlines()
        assert lines == [f"run {number}" for number in range(1, count + 1)]
    names = git(checkout, "ls-tree", "-r", "--name-only", "FETCH_HEAD").split()
    assert names == ["history.jsonl", "state/bus/queries.jsonl"]
    git(checkout, "fetch", "--quiet", "--unshallow", "origin", "harness-history")
    assert git(checkout, "log", "--format=%s", "FETCH_HEAD").splitlines() == ["Run 2", "Run 1"]
    assert git(checkout, "status", "--porcelain") == ""


def test_a_job_that_judged_nothing_keeps_nothing(checkout):
    """Without a history there is nothing to keep, and no branch is made."""
    assert history(checkout, "keep").returncode == 0
    assert "harness-history" not in git(checkout, "ls-remote", "origin")


def test_a_remote_that_cannot_be_read_is_an_error(checkout):
    """A history that cannot be fetched is not begun anew: that would lose the one that there is."""
    git(checkout, "remote", "set-url", "origin", str(checkout / "nowhere"))
    assert history(checkout, "fetch").returncode == 1
    leave(checkout, "run")
    assert history(checkout, "keep").returncode != 0
