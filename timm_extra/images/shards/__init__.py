"""Shards: WebDataset tars and Parquet files, with an index and an order of their own."""

from .find import find_shards, has_split, holds_shards
from .reader import ShardFile, ShardReader

__all__ = ['ShardFile', 'ShardReader', 'find_shards', 'has_split', 'holds_shards']
