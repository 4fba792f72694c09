"""Malformed command lines and file trees: whatever is typed ends in one line and exit status 1 or 2."""

import collections
import contextlib
import io
import random
import runpy
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.flow.standin import create_standin
from timm_extra import cli, hub
from timm_extra.models import info

CASES, PARTS = 1200, 4
VALUES = (
    '', ' ', '-1', '0', '1', '-0', '1e9', '-99999999999999999999', '1e-400', 'nan', 'inf', '-inf', 'ä', '\N{BOMB}', "'",
    '[', '{}', 'None', 'True', 'a=b', '=', 'a==', 'x' * 5000, '.', '..', '/', '~', '/dev/null', 'local-dir:', 'hf-hub:',
    'hf-hub:a/b/c', 'a/b', 'local-dir:nowhere', 'local-dir:photos', 'test_ceit', 'test_ceit.in1k', 'resnet18d',
    'empty', 'broken', 'tree', 'model', 'weights.pth', 'junk.pth', 'photo.png', 'photos',
    'no.png', 'a\nb', '%s', '--', '-',
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What command lines may name: photos, damaged ones, odd trees, a model, its weights."""
    root = tmp_path_factory.mktemp('malformed')
    random_pixels = np.random.default_rng(0).integers(0, 255, (2, 2, 3, 20, 24, 3), dtype=np.uint8)
    for i, split in enumerate(('train', 'validation')):
        for label in range(2):
            place = root / 'photos' / split / f'class{label}'
            place.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(random_pixels[i, label, number]).save(place / f'{number}.png')
    Image.fromarray(random_pixels[0, 0, 0]).save(root / 'photo.png')
    (root / 'empty').mkdir()
    for name in ('broken/train/a', 'broken/validation/a', 'tree/train', 'tree/validation/b/c'):
        (root / name).mkdir(parents=True)
    for name in ('broken/train/a/1.png', 'broken/validation/a/2.jpg', 'tree/train/x.PNG', 'junk.pth'):
        (root / name).write_bytes(b'\x89PNG\r\n\x1a\n no image')
    (root / 'tree' / 'loop').symlink_to(root / 'tree')
    (root / 'tree' / 'train' / 'gone.png').symlink_to(root / 'nowhere.png')
    (root / 'tree' / 'validation' / 'b' / 'c' / '.hidden.png').touch()
    model = timm.create_model('test_ceit', num_classes=2, img_size=32)
    hub.save(model, root / 'model')
    torch.save(model.state_dict(), root / 'weights.pth')
    torch.save(create_standin().state_dict(), root / 'flow.pth')
    return root


LINES = [
    line.split()
    for line in """
    models test_ceit
    run train.py --model test_ceit
    demo --output out --epochs 0 --lr nan --batch-size 0 --seed -1
    pretrain simsiam --model test_resnet --data-dir photos --output out --num-train-steps 1 -b 3 -j 0 --cpu --lr 0.1
    pretrain glom --model test_glom --data-dir photos --output out --epochs 1 -b 6 -j 0 --cpu --noise 0.5 1 --probes knn
    finetune photos --model test_resnet --output out --epochs 1 -b 2 -j 0 --lr 0.1 --holdout 0.5 --device cpu
    probe knn --model local-dir:model --data-dir photos -j 0 -b 4 --device cpu
    predict photos photo.png --model local-dir:model --topk 2 --device cpu --json
    predict photo.png --model test_ceit --checkpoint weights.pth --model-kwargs img_size=32 --mean 0.5 0.5 0.5 --std 1
    predict photo.png --model test_ceit --checkpoint weights.pth --input-size 3 32 32 --batch-size 1
    flow photo.png photo.png --model standin_flow --checkpoint flow.pth --output out --max-flow 2 --device cpu
    flow photos/train/class0 --model standin_flow --checkpoint flow.pth --output out --json
    plot attention photo.png --model local-dir:model --output out.png
    plot islands photo.png --model test_glom --iters 2 --threshold 0.5 --output out.png
    convert weights.pth out --model test_ceit --model-kwargs img_size=32 --labels photos
    push model owner/name --private --message x
    pull owner/name out --revision main
    export onnx out.onnx --model local-dir:model --tolerance 1e-4 --opset 18
    doctor --no-hub
    """.strip().splitlines()
]


def mutated(draw: random.Random):
    """A command line with one to three faults."""
    words = list(draw.choice(LINES))
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(1, len(words)) if len(words) > 1 else 0
        if words[at].startswith('-') and at + 1 < len(words) and draw.random() < 0.8:
            at += 1  # what an option is given
        kind = draw.randrange(10)
        if kind == 0 and len(words) > 1:
            del words[at]
        elif kind == 1:
            words.insert(at, words[at])
        elif kind == 2:
            other = draw.randrange(1, len(words)) if len(words) > 1 else 0
            words[at], words[other] = words[other], words[at]
        elif kind == 3:  # a typing error
            word = words[at]
            cut = draw.randrange(len(word) + 1)
            words[at] = word[:cut] + draw.choice('abz-_=. 0') + word[cut + draw.randrange(2) :]
        elif kind == 4:
            words.insert(at, draw.choice(('--nope', '--json', '--seed', '-b', '--model-kwargs', '--lr', '--resume')))
        else:
            words[at] = draw.choice(VALUES)
    return words


def snapshot(root: Path):
    """Every file below a folder and when it was written."""
    return {path.relative_to(root): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob('*')}


def outcome(words):
    """Exit status and standard error of a command."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words)
        except SystemExit as e:
            status = e.code
    if isinstance(status, str):  # of sys.exit(message), which Python prints
        return 1, status
    return status, err.getvalue()


def restore(root: Path, before, after) -> None:
    """Remove what a command has written."""
    for name in sorted(after.keys() - before.keys(), reverse=True):
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@pytest.mark.parametrize('part', range(PARTS))
def test_malformed_command_lines_are_refused_in_one_line(part, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError('no time for this')

    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(torch.onnx, 'export', refuse)
    monkeypatch.setattr(torch.export, 'export', refuse)
    monkeypatch.setattr(runpy, 'run_path', refuse)  # errors of scripts are their own
    monkeypatch.setattr(info, 'count', lambda model: (1, 1.0))
    statuses = collections.Counter()
    for seed in range(part, CASES, PARTS):
        words = mutated(random.Random(seed))
        before = snapshot(folder)
        status, err = outcome(words)
        after = snapshot(folder)
        statuses[status] += 1
        lines = [line for line in err.splitlines() if line.startswith('timm-extra')]
        ours = [line for line in lines if not line.startswith('timm-extra: left out: ')]  # said of folders, before
        assert status in (0, 1, 2), (words, status)
        assert 'Traceback' not in err, (words, err)
        if status:
            assert len(ours) == 1, (words, err)
            assert err.rstrip().endswith(ours[0]), (words, err)
            assert after == before, (words, err)
        restore(folder, before, after)
    assert statuses[1] > 50 and statuses[2] > 50
