"""Which features are there: the one place that knows what the files and folders of a benchmark are called."""

from __future__ import annotations

from pathlib import Path

from vl_peft.errors import ConfigError, DataError
from vl_peft.features.packed import PackedStore
from vl_peft.features.regions import RegionStore
from vl_peft.features.store import PACKED, FeatureStore, FolderStore

REGIONS = "butd"  # the detector whose regions VL-T5's files hold (bottom-up, top-down attention)


def region_files(root: Path, pattern: str) -> list[Path]:
    """Files of image regions of a benchmark, such as ``COCO/features/val2014_obj36.h5``, sorted."""
    return sorted((root / Path(pattern).parts[0]).glob("features/*_obj*.h5"))


def found_encoders(root: Path, pattern: str) -> list[str]:
    """Names of the encoders whose features are there, sorted; see :func:`find_store` for the arguments."""
    before, after = Path(pattern).name.split("{encoder}")
    folders = [path.name for path in root.glob(pattern.format(encoder="*")) if path.is_dir()]
    packed = [path.name.removesuffix(PACKED) for path in root.glob(pattern.format(encoder="*") + PACKED)]
    names = {name.removeprefix(before).removesuffix(after) for name in folders + packed}
    return sorted(names | ({REGIONS} if region_files(root, pattern) else set()))


def find_store(root: Path, pattern: str, encoder: str | None, kind: type[FolderStore]) -> FeatureStore:
    """The features of a benchmark by one encoder: VL-T5's files, a packed file, or the folder beside which it lies.

    Args:
        root: the data root.
        pattern: where they are below it; ``{encoder}`` stands for the encoder's name in the last part of the path.
        encoder: its name, or ``None`` for the only one whose features are there.
        kind: how a folder is read.

    Raises:
        ConfigError: of several encoders none was chosen.
        DataError: there are no features.
    """
    if encoder is None:
        encoder = _only(root, pattern)
    if encoder == REGIONS and (files := region_files(root, pattern)):
        return RegionStore(files)
    folder = root / pattern.format(encoder=encoder)
    packed = folder.with_name(folder.name + PACKED)
    return PackedStore(packed) if packed.is_file() else kind(folder)


def _only(root: Path, pattern: str) -> str:
    found = found_encoders(root, pattern)
    if len(found) > 1:
        raise ConfigError(
            f"Features of several encoders are in {root / Path(pattern).parts[0]}: {', '.join(found)}. "
            "Choose one with --data.encoder."
        )
    if not found:
        raise DataError(
            root / pattern.format(encoder="<encoder>"),
            "no such feature folder",
            remedy="Set --data.root to your data, or write the demo corpus with `vl-peft data demo`.",
        )
    return found[0]
