"""Visual features: reading, pooling and making them."""

from vl_peft.features.encoders import DemoEncoder, VisionEncoder, load_encoder
from vl_peft.features.extract import ExtractReport, extract_images, extract_videos
from vl_peft.features.find import find_store, found_encoders
from vl_peft.features.packed import PackedStore
from vl_peft.features.pooling import pool_grid, pool_time
from vl_peft.features.raw import RawStore
from vl_peft.features.regions import RegionStore
from vl_peft.features.store import CachedStore, FeatureStore, FolderStore, ImageFolderStore, VideoFolderStore
from vl_peft.features.video import frame_times, map_frames, read_frames

__all__ = [
    "CachedStore",
    "DemoEncoder",
    "ExtractReport",
    "FeatureStore",
    "FolderStore",
    "ImageFolderStore",
    "PackedStore",
    "RawStore",
    "RegionStore",
    "VideoFolderStore",
    "VisionEncoder",
    "extract_images",
    "extract_videos",
    "find_store",
    "found_encoders",
    "frame_times",
    "load_encoder",
    "map_frames",
    "pool_grid",
    "pool_time",
    "read_frames",
]
