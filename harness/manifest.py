"""The manifest of a release: what its files are, where they come from, and who judged them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.artifact import (
    MANIFEST,
    MANIFEST_SCHEMA,
    MANIFEST_VERSION,
    Artifact,
    Variant,
    digest_of_digests,
    folder_digests,
)
from harness.documents import Json, write_json
from harness.errors import ArtifactError

UNJUDGED = "UNJUDGED"


def content_digest(folder: Path) -> str:
    """Digest everything in an export folder but its manifest, which is rewritten when it is accepted."""
    return digest_of_digests(folder_digests(folder, leave_out=frozenset({MANIFEST})))


def write_manifest(
    folder: Path,
    *,
    default_variant: Variant,
    reference_digest: str,
    versions: Mapping[str, str],
    quantization: Mapping[str, Any] | None,
    serving: Mapping[str, Any],
) -> None:
    """Write the manifest of a fresh, unjudged export over the files that are in the folder now."""
    manifest: Json = {
        "schema": MANIFEST_SCHEMA,
        "version": MANIFEST_VERSION,
        "decision": UNJUDGED,
        "verdict_digest": None,
        "default_variant": default_variant.value,
        "serving": dict(serving),
        "quantization": None if quantization is None else dict(quantization),
        "reference_digest": reference_digest,
        "versions": dict(versions),
        "files": folder_digests(folder, leave_out=frozenset({MANIFEST})),
    }
    write_json(folder / MANIFEST, manifest)


def changed_files(artifact: Artifact) -> list[str]:
    """Compare the files with the manifest.

    Returns:
        One line for each file that is missing, changed or was added; empty if all are as released.

    Raises:
        ArtifactError: the folder has no manifest.
    """
    if artifact.manifest is None:
        message = f"{artifact.folder} has no {MANIFEST}, so nothing says what its files should be. Release it with `harness release`."
        raise ArtifactError(message)
    expected = artifact.manifest.get("files")
    if not isinstance(expected, dict):
        message = f"{artifact.folder / MANIFEST} lists no files. Release it again."
        raise ArtifactError(message)
    found = folder_digests(artifact.folder, leave_out=frozenset({MANIFEST}))
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    problems += [f"{name} was added after the release" for name in sorted(set(found) - set(expected))]
    problems += [
        f"{name} was changed after the release"
        for name in sorted(found)
        if name in expected and found[name] != expected[name]
    ]
    return problems
