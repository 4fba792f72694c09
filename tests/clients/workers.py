"""What the processes of test_distributed.py do."""

import sys
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import timm_extra
from tests.clients.zoo import images, make
from timm_extra_kernels.linear.processors import Choice

WORLD = 2
STEPS = 2


def loss(output):
    return output.square().mean()


def shard(name, step, rank):
    """Images of one process in one step."""
    return images(name, 2 * WORLD, seed=step)[2 * rank : 2 * rank + 2].double()


def ddp(name, options, checkpointing, dtype=torch.float64):
    """A model and its wrapper that averages gradients."""
    model = make(name, **options).to(dtype).train()
    model.set_grad_checkpointing(checkpointing)
    return model, DistributedDataParallel(model)


def fsdp(name, options, checkpointing, dtype=torch.float64):
    """A model whose blocks, and the rest, are sharded."""
    model = make(name, **options).to(dtype).train()
    model.set_grad_checkpointing(checkpointing)
    mesh = init_device_mesh('cpu', (WORLD,))
    for block in model.levels if hasattr(model, 'levels') else model.blocks:
        fully_shard(block, mesh=mesh)
    return model, fully_shard(model, mesh=mesh)


def accelerated(name, options, checkpointing, sharded):
    """A model in float32 whose linear layers go through oneDNN, whatever the processor."""
    everything = Choice('any processor', output=1, input_gradient=1, narrowing=1, widening=1, features=1)
    sys.modules['timm_extra_kernels.linear'].choice = lambda: everything
    model, wrapped = (fsdp if sharded else ddp)(name, options, checkpointing, dtype=torch.float32)
    timm_extra.accelerate(model)
    return model, wrapped


accelerated_ddp = partial(accelerated, sharded=False)
accelerated_fsdp = partial(accelerated, sharded=True)


def train(rank, wrap, name, options, checkpointing, folder):
    """Train for some steps as one of the processes and save the parameters, from the first process."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=WORLD)
    model, wrapped = wrap(name, options, checkpointing)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(wrapped(shard(name, step, rank).to(next(model.parameters()).dtype))).backward()
        optimizer.step()
    found = {k: p.full_tensor() if isinstance(p, DTensor) else p for k, p in model.named_parameters()}
    if rank == 0:
        torch.save({k: v.detach() for k, v in found.items()}, f'{folder}/parameters.pt')
    dist.barrier()
    dist.destroy_process_group()
