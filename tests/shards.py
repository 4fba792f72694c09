"""Small shards of images: WebDataset tars and Parquet files."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(n, size=20, seed=0, ending='png'):
    """`n` grey images as files, in four classes that differ in brightness."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(n):
        pixels = random.integers(0, 128, (size, size)) + 32 * (i % 4)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, ending)
        found.append(file.getvalue())
    return found


def write_tar(path, members):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_tars(folder, files, per_shard=16, split='train'):
    """WebDataset's: an image and its class beside each other."""
    for first in range(0, len(files), per_shard):
        members = []
        for i, content in enumerate(files[first : first + per_shard], first):
            members += [(f'{i:06}.png', content), (f'{i:06}.cls', str(i % 4).encode())]
        write_tar(folder / f'{split}-{first // per_shard:05}.tar', members)
    return folder


def write_parquet(folder, files, per_shard=16, per_group=4, split='train', names=None):
    """Hugging Face's: images as bytes and path, classes by number, and their names in the metadata."""

    folder.mkdir(parents=True, exist_ok=True)
    features = dict(image={'_type': 'Image'}, label={'names': names or list('abcd'), '_type': 'ClassLabel'})
    metadata = {'huggingface': json.dumps(dict(info=dict(features=features)))}
    shards = -(-len(files) // per_shard)
    for number in range(shards):
        part = range(number * per_shard, min(len(files), (number + 1) * per_shard))
        images = [dict(bytes=files[i], path=f'{i:06}.png') for i in part]
        table = pa.table(dict(image=images, label=[i % 4 for i in part])).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f'{split}-{number:05}-of-{shards:05}.parquet', row_group_size=per_group)
    return folder


def write_folder(folder, files):
    """The same images as files in folders of classes, in the same order by name."""
    for i, content in enumerate(files):
        place = folder / f'{i:06}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


WRITERS = dict(tar=write_tars, parquet=write_parquet)


def contents(reader):
    """All images of a reader, as they are stored."""
    return [reader[i][0].read() for i in range(len(reader))]


def labels(reader):
    """All classes of a reader."""
    return [reader[i][1] for i in range(len(reader))]


def table(path, **columns):
    """A Parquet file of these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path
