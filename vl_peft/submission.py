"""Files of predictions as the benchmarks' servers want them: written, read back and checked.

A :class:`Format` turns predictions by example id into the text of a file and back; a :class:`Submission` says which
file and which archive a split's predictions go to.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vl_peft.errors import DataError
from vl_peft.metrics import Record

REMEDY = "See the README for the format of each benchmark."


class Format(ABC):
    """One file format. Predictions are texts as the metrics take them (``a2``, ``true``, a caption)."""

    @abstractmethod
    def dump(self, records: Mapping[str, Record]) -> str:
        """The text of a file with these predictions, by example id."""

    @abstractmethod
    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """Id and prediction of each entry of such a text; both are checked by :meth:`read`.

        Raises:
            DataError, KeyError, TypeError, ValueError: the text is not of this format.
        """

    def valid(self, prediction: str) -> bool:
        """Whether the format can hold the prediction; what it cannot hold is replaced when it is written."""
        return True

    def read(self, file: Path) -> dict[str, str]:
        """The predictions of a file, by example id.

        Raises:
            DataError: it is missing, not of this format, or has an id twice.
        """
        try:
            text = file.read_text(encoding="utf-8")
            entries = list(self.items(text, file))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(file, f"not a file of {type(self).__name__} ({error!r})", remedy=REMEDY) from error
        predictions: dict[str, str] = {}
        for key, prediction in entries:
            if isinstance(key, bool) or not isinstance(key, (str, int)) or not isinstance(prediction, str):
                raise DataError(file, f"{key!r}: {prediction!r} is not an id and a text", len(predictions), REMEDY)
            if str(key) in predictions:
                raise DataError(file, "this id is there twice", key, REMEDY)
            predictions[str(key)] = prediction
        return predictions


@dataclass(frozen=True)
class JsonList(Format):
    """``[{"question_id": 1, "answer": "net"}, ...]``: VQA, GQA, COCO captions.

    Args:
        id_key: name of the id.
        prediction_key: name of the prediction.
        number: whether ids are numbers.
    """

    id_key: str
    prediction_key: str
    number: bool = True

    def dump(self, records: Mapping[str, Record]) -> str:
        """One entry per line."""
        entries = (
            {self.id_key: int(key) if self.number else key, self.prediction_key: record.prediction}
            for key, record in records.items()
        )
        return "[" + ",\n".join(json.dumps(entry) for entry in entries) + "]\n"

    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """Ids have to be of the right type."""
        for entry in json.loads(text):
            key = entry[self.id_key]
            if not isinstance(key, int if self.number else str):
                raise DataError(file, f"'{self.id_key}' is {key!r}, of the wrong type", key, REMEDY)
            yield key, entry[self.prediction_key]


@dataclass(frozen=True)
class ChoiceIndices(Format):
    """``{"137292": 2, ...}``: the index of the chosen answer of TVQA and How2QA, here the text ``a2``.

    An answer that is no choice becomes choice 0, as in the published code.

    Args:
        choices: how many there are.
    """

    choices: int

    def valid(self, prediction: str) -> bool:
        """``a0``, ``a1``, ..."""
        return prediction in {f"a{i}" for i in range(self.choices)}

    def dump(self, records: Mapping[str, Record]) -> str:
        """A JSON object."""
        indices = {key: int(r.prediction[1:]) if self.valid(r.prediction) else 0 for key, r in records.items()}
        return json.dumps(indices) + "\n"

    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """Indices back to texts."""
        for key, index in json.loads(text).items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.choices:
                raise DataError(file, f"{index!r} is not an index from 0 to {self.choices - 1}", key, REMEDY)
            yield key, f"a{index}"


@dataclass(frozen=True)
class Verdicts(Format):
    """``dev-850-0-0,True`` per line: NLVR2."""

    def dump(self, records: Mapping[str, Record]) -> str:
        """No header, as the official script wants it."""
        return "".join(f"{key},{record.prediction.capitalize()}\n" for key, record in records.items())

    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """``True`` and ``False`` in any case, as the official script reads them."""
        for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
            if len(row) != 2 or row[1].lower() not in ("true", "false"):
                raise DataError(file, f"{','.join(row)!r} is not identifier,True or identifier,False", number, REMEDY)
            yield row[0], row[1].lower()


@dataclass(frozen=True)
class ClipCaptions(Format):
    """``{"vid_name": ..., "clip_id": 97443, "ts": [...], "descs": [{"desc": ...}]}`` per line: TVC and YC2C.

    Of several descriptions the first counts, as on the server.
    """

    fields: ClassVar[tuple[str, ...]] = ("vid_name", "clip_id", "ts")

    def dump(self, records: Mapping[str, Record]) -> str:
        """The facts about a clip come from ``Example.meta``."""
        lines = (
            {**{name: r.meta[name] for name in self.fields if name in r.meta}, "descs": [{"desc": r.prediction}]}
            for r in records.values()
        )
        return "".join(json.dumps(line) + "\n" for line in lines)

    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """Clip id and first description."""
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    entry: dict[str, Any] = json.loads(line)
                    yield entry["clip_id"], entry["descs"][0]["desc"]
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    raise DataError(file, f"not a line with clip_id and descs ({error!r})", number, REMEDY) from error


@dataclass(frozen=True)
class RunPredictions(Format):
    """``{"id": ..., "prediction": ..., "references": [...]}`` per line: ``predictions/*.jsonl`` of a run."""

    def dump(self, records: Mapping[str, Record]) -> str:
        """All there is, so that a person can compare."""
        lines = (
            {"id": key, "prediction": record.prediction, "references": record.references}
            for key, record in records.items()
        )
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def items(self, text: str, file: Path) -> Iterable[tuple[object, object]]:
        """Without the references."""
        for line in filter(str.strip, text.split("\n")):
            entry = json.loads(line)
            yield entry["id"], entry["prediction"]


def read_predictions(file: Path, format: Format) -> dict[str, str]:
    """The predictions of a file in a benchmark's format or as a run writes them, by example id.

    Raises:
        DataError: it is missing, of neither format, or has an id twice.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            start = lines.read(64)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, f"cannot be read ({error})", remedy=REMEDY) from error
    return (RunPredictions() if start.startswith('{"id": ') else format).read(file)


@dataclass(frozen=True)
class Submission:
    """Where a split's predictions go.

    Args:
        path: the file below the folder of all submissions, and in its archive.
        format: its format.
        archive: the zip file that is uploaded; empty if the file itself is.
    """

    path: str
    format: Format
    archive: str = ""

    def write(self, folder: Path, records: Mapping[str, Record], ids: Iterable[str]) -> Path:
        """Write the predictions, read them again and compare.

        Args:
            folder: of all submissions.
            records: the predictions by example id.
            ids: the ids that have to be there, no more and no fewer.

        Returns:
            The file.

        Raises:
            DataError: ids are missing or too many, or what was read is not what was written.
        """
        file = folder / self.path
        compare_ids(file, records, ids)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(self.format.dump(records), encoding="utf-8")
        again = self.format.read(temporary)
        wrong = [k for k, r in records.items() if again.get(k) != r.prediction and self.format.valid(r.prediction)]
        if wrong or len(again) != len(records):
            temporary.unlink()
            raise DataError(file, "the file would not say what was predicted", (wrong or ["number of entries"])[0])
        temporary.replace(file)
        return file


def compare_ids(
    file: Path,
    predictions: Iterable[str],
    references: Iterable[str],
    remedy: str = "Predict the whole split, all its features being there.",
) -> None:
    """See that predictions and references have the same ids.

    Raises:
        DataError: naming some of those that are missing or too many.
    """
    ours, theirs = dict.fromkeys(predictions), dict.fromkeys(references)
    missing, extra = [key for key in theirs if key not in ours], [key for key in ours if key not in theirs]
    if missing or extra:
        parts = [
            f"{len(keys)} of the {total} {what} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
            for keys, total, what in (
                (missing, len(theirs), "examples have no prediction"),
                (extra, len(ours), "predictions are of no example"),
            )
            if keys
        ]
        raise DataError(file, "; ".join(parts), remedy=remedy)


def archive(folder: Path, name: str, paths: Iterable[str]) -> Path:
    """Zip files of the folder under their own paths."""
    file = folder / name
    temporary = file.with_name(f".{name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in paths:
            zipped.write(folder / path, path)
    temporary.replace(file)
    return file
