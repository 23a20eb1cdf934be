"""Visual features: reading, pooling and making them."""

from vl_peft.features.encoders import DemoEncoder, VisionEncoder, load_encoder
from vl_peft.features.extract import ExtractReport, extract_images, extract_videos
from vl_peft.features.packed import PackedStore
from vl_peft.features.pooling import pool_grid, pool_time
from vl_peft.features.store import CachedStore, FeatureStore, ImageFolderStore, VideoFolderStore
from vl_peft.features.video import frame_times, map_frames, read_frames

__all__ = [
    "CachedStore",
    "DemoEncoder",
    "ExtractReport",
    "FeatureStore",
    "ImageFolderStore",
    "PackedStore",
    "VideoFolderStore",
    "VisionEncoder",
    "extract_images",
    "extract_videos",
    "frame_times",
    "load_encoder",
    "map_frames",
    "pool_grid",
    "pool_time",
    "read_frames",
]
