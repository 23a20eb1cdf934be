"""A data root to fill with tiny files in the official formats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest


class DataRoot:
    """Writes annotation files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self, name: str, content: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        return file

    def json(self, name: str, value: Any) -> Path:
        return self.text(name, json.dumps(value))

    def lines(self, name: str, records: Iterable[Any]) -> Path:
        return self.text(name, "".join(json.dumps(record) + "\n" for record in records))

    def copy(self, name: str, source: Path) -> Path:
        return self.text(name, source.read_text(encoding="utf-8"))

    def subtitles(self, channel: str, **videos: list[str]) -> Path:
        """A subtitle file; keyword = video, value = what is said."""
        records = [
            {"vid_name": video, "sub": [{"text": t, "start": i, "end": i + 1} for i, t in enumerate(texts)]}
            for video, texts in videos.items()
        ]
        return self.lines(f"video/ann/{channel}_subtitles.jsonl", records)

    def image_features(self, folder: str, keys: Iterable[str], dim: int = 8) -> None:
        """A feature file of ones for each image."""
        (self.path / folder).mkdir(parents=True, exist_ok=True)
        for key in keys:
            with h5py.File(self.path / folder / f"{key}.h5", "w") as h5:
                h5[f"{key}/features"] = np.ones((49, dim), np.float16)

    def options(self, **options: Any) -> dict[str, Any]:
        """Arguments for a benchmark that reads here, its prompts where the published templates have them."""
        position = "end" if (self.path / "video").exists() else "front"
        return {"root": str(self.path), "prompt_position": position, **options}


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the benchmarks report while the test runs."""
    messages: list[str] = []
    monkeypatch.setattr("datamodules.base.rank_zero_info", messages.append)
    return messages
