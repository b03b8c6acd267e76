"""Acceptance is one step: whatever fails before it, the earlier release is served, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import files_of, names_in

from harness import accept as accept_module
from harness.artifact import open_artifact
from harness.errors import AcceptanceError, DocumentError
from harness.export_onnx import check_output
from harness.manifest import changed_files, content_digest

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def staging(tmp_path):
    """Judged files: nothing here loads a model, so a few bytes do."""
    return make_staging(tmp_path / "run" / "candidate", "new")


@pytest.fixture
def output(tmp_path):
    """Where releases are served from."""
    return tmp_path / "models" / "onnx"


def make_staging(folder: Path, content: str) -> Path:
    """Write what an export writes, as far as acceptance looks at it."""
    from harness.artifact import Variant
    from harness.manifest import write_manifest
    from harness.serving import VariantEntry

    folder.mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    write_manifest(
        folder,
        default_variant=Variant.FP32,
        reference_digest=DIGEST,
        versions={},
        variants={Variant.FP32: VariantEntry()},
    )
    return folder


def accept(staging: Path, output: Path, **names) -> Path:
    """Accept the files of a staging folder as they are now, as those that were judged."""
    return accept_module.accept(staging, output, judged_digest=content_digest(staging), **names)


def store_of(output: Path) -> Path:
    """Where the releases of an output are kept."""
    return output.parent / f".{output.name}.releases"


def served(output: Path) -> str:
    """What whoever opens the output gets; the release must be whole."""
    assert changed_files(open_artifact(output)) == []
    return (output / "model.onnx").read_text(encoding="utf-8")


def manifest_of(folder: Path) -> dict:
    """The manifest's content."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_the_first_release(staging, output):
    """Where nothing was, the judged files are served, and nothing else lies about."""
    before = files_of(staging)
    folder = accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    assert served(output) == "new"
    assert output.resolve() == folder == store_of(output).resolve() / "run-1"
    assert names_in(output.parent) == [".onnx.releases", "onnx"]
    assert files_of(staging) == before  # left as they are
    assert {name: content for name, content in files_of(output).items() if name != "manifest.json"} == {
        name: content for name, content in before.items() if name != "manifest.json"
    }


def test_the_manifest_says_who_accepted_it(staging, output):
    """The manifest of a release says ACCEPTED, names the verdict and has the contract; all else in it stays."""
    contract = {"parity.int8.batch_logit_difference": {"value": 0.0, "unit": "logit", "limit": "≤ 0.001"}}
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST, contract=contract)
    accepted = {"decision": "ACCEPTED", "verdict_digest": DIGEST, "contract": contract}
    assert manifest_of(output) == {**manifest_of(staging), **accepted}
    assert manifest_of(staging)["decision"] == "UNJUDGED"


def test_a_second_release_replaces_the_first(staging, output, tmp_path):
    """The new release is served; the old one is kept as it was."""
    first = accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    before = files_of(first)
    accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    assert served(output) == "new"
    assert files_of(first) == before
    assert names_in(store_of(output)) == ["run-1", "run-2"]
    assert names_in(output.parent) == [".onnx.releases", "onnx"]


def test_who_opened_the_old_release_keeps_it(staging, output, tmp_path):
    """An artifact that was opened before the switch still reads one whole release, the old one."""
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    opened = open_artifact(output)
    accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    assert changed_files(opened) == []
    assert (opened.folder / "model.onnx").read_text(encoding="utf-8") == "old"


def test_three_releases_are_kept(output, tmp_path):
    """The release that is served and the two before it stay; older ones are deleted."""
    for number in range(1, 7):
        folder = accept(
            make_staging(tmp_path / f"s{number}", str(number)), output, run_id=f"run-{number}", verdict_digest=DIGEST
        )
        os.utime(folder, ns=(number * 10**9, number * 10**9))  # as if they were made some time apart
        assert served(output) == str(number)
        expected = [f"run-{kept}" for kept in range(max(1, number - 2), number + 1)]
        assert names_in(store_of(output)) == expected


def test_a_real_folder_is_kept_in_the_store(staging, output, tmp_path):
    """An export that stands where the release goes is not deleted: it moves into the store."""
    shutil.copytree(make_staging(tmp_path / "old", "old"), output)
    before = files_of(output)
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    assert served(output) == "new"
    assert output.is_symlink()
    assert files_of(store_of(output) / "before-run-1") == before


def test_an_empty_folder_is_replaced(staging, output):
    """An empty folder at the output is no obstacle."""
    output.mkdir(parents=True)
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    assert served(output) == "new"


def test_a_dangling_link_is_replaced(staging, output):
    """A link whose folder somebody deleted is replaced."""
    output.parent.mkdir()
    output.symlink_to("nowhere")
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    assert served(output) == "new"


def test_relative_paths(staging, tmp_path, monkeypatch):
    """Both paths may be relative, as the defaults are; the link holds wherever one stands."""
    monkeypatch.chdir(tmp_path)
    accept(Path("run/candidate"), Path("models/onnx"), run_id="run-1", verdict_digest=DIGEST)
    monkeypatch.chdir("/")
    assert served(tmp_path / "models" / "onnx") == "new"


def test_the_models_folder_can_be_moved(staging, output, tmp_path):
    """The link is relative, so a copy of the whole folder serves its own release."""
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    moved = output.parent.rename(tmp_path / "elsewhere")
    assert served(moved / "onnx") == "new"


def test_a_release_may_be_released_over(staging, output, tmp_path):
    """What acceptance leaves at the output is something that the next run agrees to replace."""
    accept(staging, output, run_id="run-1", verdict_digest=DIGEST)
    check_output(output, tmp_path / "model")


# The function behind each step; writing the manifest renames a file too, so the switch is the second `replace`.
STEPS = {
    "copy": (shutil, "copytree"),
    "manifest": (accept_module, "write_json"),
    "open": (os, "open"),
    "sync": (os, "fsync"),
    "rename": (Path, "rename"),
    "link": (Path, "symlink_to"),
    "switch": (Path, "replace"),
}
FAILURES = [*((step, 0) for step in STEPS), ("sync", 2), ("switch", 1)]


def break_at(monkeypatch, step, error, after: int = 0):
    """Let a step fail, after it has worked some times."""
    owner, name = STEPS[step]
    real = getattr(owner, name)
    calls = []

    def broken(*args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            monkeypatch.setattr(owner, name, real)  # what clears up may use it again
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    return calls


ERRORS = (OSError(28, "No space left on device"), KeyboardInterrupt())


def failing(staging, output, error):
    """An acceptance that does not come to its end."""
    with pytest.raises(AcceptanceError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "still stands" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", ERRORS, ids=["disk full", "interrupt"])
@pytest.mark.parametrize(("step", "after"), FAILURES)
def test_the_earlier_release_stands(staging, output, tmp_path, monkeypatch, step, after, error):
    """Whatever fails before the switch, the earlier release is served byte for byte, and no half of the new one is left."""
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    before = files_of(output)
    calls = break_at(monkeypatch, step, error, after)
    failing(staging, output, error)
    assert calls, "the step that was to fail is not one of acceptance's"
    assert files_of(output) == before
    assert served(output) == "old"
    assert names_in(store_of(output)) == ["run-1"]
    assert names_in(output.parent) == [".onnx.releases", "onnx"]
    accept(staging, output, run_id="run-2", verdict_digest=DIGEST)  # and trying again works
    assert served(output) == "new"


@pytest.mark.parametrize("error", ERRORS, ids=["disk full", "interrupt"])
@pytest.mark.parametrize(("step", "after"), [*FAILURES, ("rename", 1)])
def test_an_earlier_real_folder_stands(staging, output, tmp_path, monkeypatch, step, after, error):
    """The same where a real folder is served: it is put back if it had been moved already."""
    shutil.copytree(make_staging(tmp_path / "old", "old"), output)
    before = files_of(output)
    calls = break_at(monkeypatch, step, error, after)
    failing(staging, output, error)
    assert calls
    assert files_of(output) == before
    assert not output.is_symlink()
    assert [name for name in names_in(output.parent) if name != ".onnx.releases"] == ["onnx"]


@pytest.mark.parametrize(("step", "after"), FAILURES)
def test_a_first_release_that_fails_leaves_nothing(staging, output, monkeypatch, step, after):
    """Where nothing was served, nothing is, and no copy of the files stays behind."""
    break_at(monkeypatch, step, ERRORS[0], after)
    failing(staging, output, ERRORS[0])
    assert not output.exists()
    assert files_of(output.parent) == {}


def test_half_a_copy_is_cleared_away(staging, output, monkeypatch):
    """A copy that breaks off in the middle is deleted."""

    def half(source, target):
        target.mkdir()
        (target / "model.onnx").write_text("ne", encoding="utf-8")
        raise shutil.Error([("a", "b", "No space left on device")])

    monkeypatch.setattr(shutil, "copytree", half)
    failing(staging, output, ERRORS[0])
    assert files_of(output.parent) == {}


def test_an_interrupt_just_after_the_switch(staging, output, tmp_path, monkeypatch):
    """Ctrl-C that arrives when the new release is served already does not delete it."""
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    real = Path.replace

    def replaced(self, target):
        real(self, target)
        if self.name.startswith(".onnx.link-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(KeyboardInterrupt):
        accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    assert served(output) == "new"


def test_an_old_release_that_cannot_be_deleted(output, tmp_path, monkeypatch):
    """That clearing away fails after the switch is no failure of the release."""
    monkeypatch.setattr(accept_module, "_KEPT_RELEASES", 1)
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)

    def broken(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", broken)
    accept(make_staging(tmp_path / "new", "new"), output, run_id="run-2", verdict_digest=DIGEST)
    assert served(output) == "new"


def test_a_run_is_accepted_once(staging, output):
    """A second acceptance under the same name fails and leaves the first, whole and served."""
    accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    before = files_of(output)
    (staging / "model.onnx").write_text("other", encoding="utf-8")
    with pytest.raises(AcceptanceError):
        accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    assert files_of(output) == before
    assert names_in(store_of(output)) == ["run-2"]


def test_a_manifest_that_is_none(staging, output, tmp_path):
    """Files without a manifest of the harness are never accepted."""
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    (staging / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DocumentError, match="manifest"):
        accept(staging, output, run_id="run-2", verdict_digest=DIGEST)
    assert served(output) == "old"
    assert names_in(store_of(output)) == ["run-1"]


def test_every_switch_shows_a_whole_release(output, tmp_path, monkeypatch):
    """Watched at every call to the file system, the output leads to one whole release, never to none or a half."""
    accept(make_staging(tmp_path / "s0", "0"), output, run_id="run-0", verdict_digest=DIGEST)
    seen = []
    watching = True

    def watched(real):
        def call(*args, **kwargs):
            nonlocal watching
            result = real(*args, **kwargs)
            if watching:
                watching = False
                seen.append(served(output))
                watching = True
            return result

        return call

    for owner, name in [*STEPS.values(), (shutil, "rmtree"), (os, "close"), (shutil, "copyfile"), (Path, "unlink")]:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    for number in range(1, 5):
        accept(
            make_staging(tmp_path / f"s{number}", str(number)), output, run_id=f"run-{number}", verdict_digest=DIGEST
        )
    monkeypatch.undo()
    assert len(seen) > 40
    assert seen == sorted(seen)
    assert set(seen) == set("01234")


@pytest.mark.parametrize("change", ["changed", "added", "missing"])
def test_other_files_than_those_judged(tmp_path, change):
    """A file that changes between the verdict and the acceptance keeps the candidate out; the old release stands."""
    output = tmp_path / "models" / "onnx"
    accept(make_staging(tmp_path / "old", "old"), output, run_id="run-1", verdict_digest=DIGEST)
    staging = make_staging(tmp_path / "new", "new")
    judged = content_digest(staging)
    match change:
        case "changed":
            (staging / "model.onnx").write_text("other", encoding="utf-8")
        case "added":
            (staging / "model_quantized.onnx").write_text("new", encoding="utf-8")
        case "missing":
            (staging / "tokenizer.json").unlink()
    before = files_of(tmp_path / "models")
    with pytest.raises(AcceptanceError, match="no longer holds the files that were judged"):
        accept_module.accept(staging, output, judged_digest=judged, run_id="run-2", verdict_digest=DIGEST)
    assert files_of(tmp_path / "models") == before
    assert served(output) == "old"
