"""Reads what the client writes offline: chunks in blocks of 32 KiB, a protobuf record each."""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, FULL, FIRST, MIDDLE, LAST = 32768, 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one file says."""

    id: str = ""
    group: str = ""
    job_type: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Read every run that was written offline below a folder."""
    return [read(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                of = record.run
                run.id, run.group, run.job_type = of.run_id, of.run_group, of.job_type
                run.sweep, run.tags = of.sweep_id, [*of.tags]
                _put(run.config, of.config.update)
            case "config":
                _put(run.config, record.config.update)
            case "summary":
                _put(run.summary, record.summary.update)
            case "history":
                run.history.append({})
                _put(run.history[-1], record.history.item)
            case "artifact":
                run.artifacts.append(record.artifact.name)
            case "exit":
                run.exit_code = record.exit.exit_code
    run.config.pop("_wandb", None)
    return run


def _records(data: bytes) -> Iterator[Any]:
    assert struct.unpack_from("<4sH", data) == (b":W&B", 0xBEE1)
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        if not (checksum or length or kind):
            position += left
            continue
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == checksum
        position += 7 + length
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            yield pb.Record.FromString(parts)  # type: ignore[attr-defined]


def _put(into: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *path, last = [*item.nested_key] or [item.key]
        place = into
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
