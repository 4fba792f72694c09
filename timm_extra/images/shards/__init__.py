"""Shards: WebDataset tars and Parquet files, with an index and an order of their own."""

from .find import find_shards, holds_shards
from .reader import ShardReader

__all__ = ['ShardReader', 'find_shards', 'holds_shards']
