"""The manifest of a release: what its files are, where they come from, and who judged them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from harness.artifact import (
    MANIFEST,
    MANIFEST_SCHEMA,
    MANIFEST_VERSION,
    Artifact,
    Variant,
    digest_of_digests,
    folder_digests,
)
from harness.documents import Json, read_json_object, write_json
from harness.errors import ArtifactError, DocumentError
from harness.serving import VariantEntry

UNJUDGED = "UNJUDGED"
# Entries of a manifest that change what is served, and how; judged as the files are.
_SERVED = ("default_variant", "variants")


def content_digest(folder: Path) -> str:
    """Digest everything in an export folder, and of its manifest, which is rewritten when it is accepted, what is served."""
    digests = folder_digests(folder, leave_out=frozenset({MANIFEST}))
    return digest_of_digests({**digests, **_served_digest(folder / MANIFEST)})


def _served_digest(path: Path) -> dict[str, str]:
    """Digest the settings in a manifest. One of version 1 keeps the digest that runs of then know the folder by."""
    try:
        manifest = read_json_object(path) if path.is_file() else {}
    except DocumentError:  # then nothing is served from the folder; whoever opens it says so
        return {}
    if manifest.get("version") == 1 or not manifest:
        return {}
    served = json.dumps({name: manifest.get(name) for name in _SERVED}, sort_keys=True)
    return {f"{MANIFEST}: {', '.join(_SERVED)}": f"sha256:{hashlib.sha256(served.encode()).hexdigest()}"}


def write_manifest(
    folder: Path,
    *,
    default_variant: Variant,
    reference_digest: str,
    versions: Mapping[str, str],
    variants: Mapping[Variant, VariantEntry],
) -> None:
    """Write the manifest of a fresh, unjudged export over the files that are in the folder now."""
    manifest: Json = {
        "schema": MANIFEST_SCHEMA,
        "version": MANIFEST_VERSION,
        "decision": UNJUDGED,
        "verdict_digest": None,
        "default_variant": default_variant.value,
        "variants": {variant.value: entry.to_json() for variant, entry in variants.items()},
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
