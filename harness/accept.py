"""Put a judged candidate where it is served from, in one step.

`output` is a symbolic link to a folder in `.<output>.releases/` beside it; accepting writes the new
folder there completely and then renames a new link over the old one, which the file system does
atomically. Whoever opens `output` gets one whole release. Releases that went before stay on disk.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness.artifact import MANIFEST, MANIFEST_SCHEMA, MANIFEST_VERSION, OLDEST_MANIFEST_VERSION
from harness.documents import Json, read_document, write_json
from harness.errors import AcceptanceError, one_line
from harness.manifest import content_digest

_KEPT_RELEASES = 3


def accept(
    staging: Path,
    output: Path,
    *,
    judged_digest: str,
    run_id: str,
    verdict_digest: str,
    contract: Mapping[str, Json] | None = None,
) -> Path:
    """Make a judged folder the release.

    Args:
        staging: the judged files, with the manifest of an unjudged export. Left as they are.
        output: the path that is served; what is there stays untouched until the last step.
        judged_digest: what the judged files digest to; see `content_digest`.
        run_id: names the folder of this release.
        verdict_digest: digest of the verdict that accepts it, written into the manifest.
        contract: what was measured that programs may rely on, such as how little padding changes; written
            into the manifest.

    Returns:
        The folder that `output` now leads to.

    Raises:
        AcceptanceError: the file system refuses, or the files are no longer those that were judged; the
            earlier release still stands.
    """
    store = output.parent / f".{output.name}.releases"
    folder = store / run_id
    try:
        store.mkdir(parents=True, exist_ok=True)
        entries = {"decision": "ACCEPTED", "verdict_digest": verdict_digest, "contract": dict(contract or {})}
        _bring_in(staging, folder, judged_digest, entries)
        try:
            _switch(output, folder)
        except BaseException:
            if not (output.exists() and output.samefile(folder)):  # an interrupt may come when it is served already
                shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as err:
        message = f"{output} could not be replaced ({err.strerror or one_line(err)}). The earlier release, if any, still stands."
        raise AcceptanceError(message) from err
    with suppress(OSError):  # the new release is served; that an old one cannot be deleted changes nothing about it
        _sweep(store, folder)
    return folder


def _bring_in(staging: Path, folder: Path, judged_digest: str, entries: Json) -> None:
    """Copy the judged files into the store, completely or not at all."""
    incoming = folder.with_name(f".incoming-{uuid.uuid4().hex}")
    try:
        shutil.copytree(staging, incoming)
        _refuse_other_files(incoming, judged_digest, staging)
        _mark_accepted(incoming, entries)
        _sync(incoming)
        incoming.rename(folder)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        with suppress(OSError):  # not empty: other releases are in it
            folder.parent.rmdir()
        raise


def _refuse_other_files(incoming: Path, judged_digest: str, staging: Path) -> None:
    """Compare the copy, not its source, which may change again."""
    if content_digest(incoming) != judged_digest:
        message = (
            f"{staging} no longer holds the files that were judged. The earlier release still stands; release again."
        )
        raise AcceptanceError(message)


def _mark_accepted(folder: Path, entries: Json) -> None:
    path = folder / MANIFEST
    manifest = read_document(path, MANIFEST_SCHEMA, MANIFEST_VERSION, oldest=OLDEST_MANIFEST_VERSION)
    write_json(path, {**manifest, **entries})


def _sync(folder: Path) -> None:
    """Have everything on disk before anything points to it."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _switch(output: Path, folder: Path) -> None:
    link = output.parent / f".{output.name}.link-{uuid.uuid4().hex}"
    before = folder.with_name(f"before-{folder.name}")
    try:
        link.symlink_to(folder.relative_to(output.parent), target_is_directory=True)
        if output.is_dir() and not output.is_symlink():
            # an earlier export left a real folder, which no rename replaces; it joins the store
            output.rename(before)
        link.replace(output)
    except BaseException:
        link.unlink(missing_ok=True)
        if before.exists() and not output.exists():
            before.rename(output)
        raise


def _sweep(store: Path, current: Path) -> None:
    """Keep the current release and the ones just before it."""
    old = sorted(
        (path for path in store.iterdir() if path != current and not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )
    for path in old[_KEPT_RELEASES - 1 :]:
        shutil.rmtree(path)
