"""What is kept of a refused sample: its file as delivered, and a line of JSON that says why it is there."""

import json
from pathlib import PurePosixPath
from typing import Any

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def file_name(path: str, sample_id: str, image: bytes | None) -> str:
    """Name of the kept file: by its content, so that odd delivered names do no harm and equal images share one."""
    if image is None:
        return ""
    by_content = next((suffix for start, suffix in SUFFIXES.items() if image.startswith(start)), "")
    own = PurePosixPath(path).suffix.lower()
    suffix = by_content or (own if own[1:].isalnum() and len(own) <= 6 else ".bin")
    return f"{sample_id}{suffix}"


def line(row: dict[str, Any], *, batch: str, reason: str, detail: str, file: str) -> str:
    """One line of `reasons.jsonl`."""
    kept = {
        "batch": batch,
        "path": row["path"],
        "sample_id": row["sample_id"],
        "label": row["label"],
        "reason": reason,
        "detail": row["detail"] or detail,
        "file": file,
        "metadata": json.loads(row["metadata"]),
    }
    return json.dumps(kept, sort_keys=True, ensure_ascii=False) + "\n"
