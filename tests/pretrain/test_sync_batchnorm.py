"""BatchNorm over processes: two with a part each are one with the whole batch."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

import timm_extra
from timm_extra.pretrain.sync_batchnorm import CrossReplicaBatchNorm, cross_replica
from timm_extra.pretrain.tasks import BYOL


@pytest.fixture
def alone(tmp_path):
    """A group of this process."""
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    'norm, shape',
    [
        (nn.BatchNorm1d(5), (7, 5)),
        (nn.BatchNorm1d(5), (7, 5, 3)),
        (nn.BatchNorm2d(5, affine=False), (4, 5, 3, 2)),
        (nn.BatchNorm2d(5, momentum=None), (4, 5, 3, 2)),
        (nn.BatchNorm2d(5, track_running_stats=False), (4, 5, 3, 2)),
        (BatchNormAct2d(5), (4, 5, 3, 2)),
    ],
)
def test_alone_it_is_batchnorm(alone, norm, shape):
    torch.manual_seed(0)
    norm = norm.double().train()
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = cross_replica(nn.Sequential(copy.deepcopy(norm)))[0]
    assert isinstance(ours, CrossReplicaBatchNorm)
    for _ in range(2):
        x = (3 * torch.randn(shape, dtype=torch.float64) + 100).requires_grad_()
        y = x.detach().clone().requires_grad_()
        a, b = norm(x), ours(y)
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
        grad = torch.randn_like(a)
        a.backward(grad)
        b.backward(grad)
        torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-7)
    assert norm.state_dict().keys() == ours.state_dict().keys()
    for (name, a), b in zip(norm.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    for (_, a), b in zip(norm.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-7)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(norm.eval()(x), ours.eval()(x))


SCRIPT = """
import sys, timm, torch, torch.distributed as dist
from timm_extra.pretrain import BYOL
dist.init_process_group('gloo')
torch.manual_seed(dist.get_rank())  # as timm's train.py seeds
task = BYOL(timm.create_model('test_resnet', num_classes=0), input_size=(3, 32, 32), projection_hidden_size=8)
task.prepare_distributed()
for module in (task.trainable_module.module.encoder, task.target):
    sums = [torch.zeros(1) for _ in range(2)]
    dist.all_gather(sums, torch.stack([p.sum() for p in module.parameters()]).sum()[None])
    assert sums[0] == sums[1], sums
task(torch.rand(4, 3, 32, 32))['loss'].backward()
"""


def test_all_processes_begin_with_the_same_networks(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(timm_extra.__file__).parents[1]))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run([*command, str(tmp_path / 'script.py')], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shared_statistics_allow_batches_of_one(alone):
    task = BYOL(timm.create_model('test_resnet', num_classes=0), input_size=(3, 32, 32), projection_hidden_size=8)
    with pytest.raises(ValueError, match='a batch of one image'):
        task(torch.rand(1, 3, 32, 32))
    cross_replica(task)
    assert task(torch.rand(1, 3, 32, 32))['loss'].isfinite()
