"""Artifacts: what runs made and used, versions told apart by their content."""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Variables = dict[str, Any]
Operation = Callable[[Variables, dict[str, Any], str], Any]


def identity(kind: str, *parts: str) -> str:
    return base64.b64encode(":".join((kind, *parts)).encode()).decode()


@dataclass
class Version:
    """One content under one name."""

    name: str
    kind: str
    digest: str
    metadata: str
    number: int
    made_by: str | None
    """The run that logged it before any other run used it."""
    state: str = "PENDING"
    files: list[str] = field(default_factory=list)


class Artifacts:
    """All versions."""

    def __init__(self) -> None:
        self.versions: dict[str, Version] = {}

    def named(self, start: str) -> list[Version]:
        return [v for v in self.versions.values() if v.name.startswith(start)]

    def operation(self, name: str) -> Operation | None:
        return {
            "CreateArtifact": self.create,
            "CreateArtifactManifest": self.create_manifest,
            "UpdateArtifactManifest": self.create_manifest,
            "CreateArtifactFiles": self.create_files,
            "CommitArtifact": self.commit,
            "UseArtifact": self.use,
            "ArtifactType": self.kind_of,
            "ArtifactByID": self.by_id,
            "FetchArtifactDigestAlgorithm": lambda v, r, u: {"project": {"artifactType": None}},
            "XXHashDigestsEnabled": lambda v, r, u: {"entity": {"xxhashDigestsEnabled": False}},
        }.get(name)

    def create(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        given = v.get("input") or v
        name, digest = given["artifactCollectionName"], given["digest"]
        same = (k for k, a in self.versions.items() if (a.name, a.digest) == (name, digest))
        if (id := next(same, None)) is None:
            id = identity("Artifact", secrets.token_hex(5))
            number = sum(a.name == name for a in self.versions.values())
            kind, metadata = given["artifactTypeName"], given.get("metadata") or "{}"
            maker = given.get("runName")
            self.versions[id] = Version(name, kind, digest, metadata, number, maker)
        if given.get("runName"):  # null where a run brings what it is going to use
            runs[given["runName"]].logged.append(name)
        version = self.versions[id]
        latest = {"id": id, "versionIndex": version.number}
        sequence = {"id": identity("Sequence", name), "latestArtifact": latest}
        about = {"id": id, "state": version.state, "digest": digest, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": about}}

    def create_manifest(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        update = "artifactManifestID" in v
        id = v["artifactManifestID"] if update else v["artifactID"]
        file = {"id": "f", "uploadUrl": f"{url}/storage/manifest/{id}", "uploadHeaders": []}
        name = "updateArtifactManifest" if update else "createArtifactManifest"
        return {name: {"artifactManifest": {"id": id, "file": file}}}

    def create_files(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        edges = []
        for file in (v.get("input") or v)["artifactFiles"]:
            id, name = file["artifactID"], file["name"]
            self.versions[id].files.append(name)
            node = {"id": "n", "name": name, "displayName": name, "storagePath": "p"}
            node |= {"uploadUrl": f"{url}/storage/artifact/{id}/{name}", "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": id}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def commit(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        version = self.versions[v["artifactID"]]
        version.state = "COMMITTED"
        about = {"id": v["artifactID"], "digest": version.digest}
        return {"commitArtifact": {"artifact": about}}

    def kind_of(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        known = next((a for a in self.versions.values() if a.name == v["name"].split(":")[0]), None)
        artifact = {"artifactType": {"name": known.kind}} if known else None
        return {"project": {"artifact": artifact}}

    def by_id(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        version = self.versions[v["id"]]
        entity = {"name": "somebody"}
        project = {"id": "p", "internalId": "1", "name": "p", "entity": entity}
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": version.name}
        about = {
            "__typename": "Artifact",
            "id": v["id"],
            "artifactSequence": {**sequence, "project": project},
            "versionIndex": version.number,
            "artifactType": {"name": version.kind},
            "metadata": version.metadata,
            "state": version.state,
            "digest": version.digest,
            "fileCount": len(version.files),
            "createdAt": "2026-01-01T00:00:00",
        }
        about |= dict.fromkeys(("description", "historyStep", "updatedAt"))
        about |= {"tags": [], "aliases": [], "size": 1, "commitHash": "c"}
        return {"artifact": {**about, "ttlDurationSeconds": -2, "ttlIsInherited": True}}

    def use(self, v: Variables, runs: dict[str, Any], url: str) -> Any:
        given = v.get("input") or v
        name = self.versions[given["artifactID"]].name
        runs[given["runName"]].used.append(name)
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
