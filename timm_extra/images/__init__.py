"""Images: the one reader of pixels and of folders, and what input a model takes."""

from .folders import (
    FileKind,
    FolderReader,
    Found,
    check_classes,
    check_splits,
    find_files,
    find_images,
    image_files,
    real_path,
)
from .pixels import MODES, UNREADABLE, PixelError, as_array, as_tensor, decode, read_header, read_image
from .preprocess import Preprocessing, check_normalisation, check_takes_images, input_config, preprocessing
from .shards import ShardReader, find_shards, holds_shards
from .tiles import ArrayTiles, SlideTiles, TiffTiles, open_tiles

__all__ = [
    'MODES',
    'UNREADABLE',
    'ArrayTiles',
    'FileKind',
    'FolderReader',
    'Found',
    'PixelError',
    'Preprocessing',
    'ShardReader',
    'SlideTiles',
    'TiffTiles',
    'as_array',
    'as_tensor',
    'check_classes',
    'check_normalisation',
    'check_splits',
    'check_takes_images',
    'decode',
    'find_files',
    'find_images',
    'find_shards',
    'holds_shards',
    'image_files',
    'input_config',
    'open_tiles',
    'preprocessing',
    'read_header',
    'read_image',
    'real_path',
]
