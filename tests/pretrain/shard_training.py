"""Pretrainings on shards that tests start in processes of their own, forked from one that has imported all."""

import multiprocessing
import os
from contextlib import suppress

import torch
from timm.data import ImageDataset
from train import run

from timm_extra.images import FolderReader, ShardReader


def dataset(folder):
    """Grey images of a folder, or of its shards."""
    reader = (FolderReader if folder.name == 'folder' else ShardReader)(folder)
    return ImageDataset(str(folder), reader=reader, input_img_mode='L')


def train(folder, output, options, world=None):
    """Train on a folder; `world` is (rank, processes, port)."""
    torch.set_num_threads(1)
    # workers are forked, as in other trainings; what a server starts for them would outlive a kill
    multiprocessing.set_start_method('fork', force=True)
    if world:
        rank, processes, port = map(str, world)
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_ADDR='localhost', MASTER_PORT=port)
    run(output, dataset=dataset(folder), resume=True, **options)
    if world:
        with suppress(AssertionError):
            torch.distributed.destroy_process_group()


def plain(images):
    """A view in float64."""
    return images.double()[..., :16, :16]


def flipped(images):
    """Another."""
    return images.double()[..., -16:, -16:].flip(-1)
