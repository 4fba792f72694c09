"""PyTorch's DDP and FSDP2 on two processes: the same parameters as without."""

import multiprocessing

import pytest
import torch
from torch.testing import assert_close

from tests.clients.workers import STEPS, WORLD, accelerated_ddp, accelerated_fsdp, ddp, fsdp, loss, shard, train
from tests.clients.zoo import MODELS, make

PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['tests.clients.workers'])  # imported once, not by every process


def by_hand(name, options):
    """Parameters after steps with the mean of the processes' gradients."""
    model = make(name, **options).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(WORLD):
            (loss(model(shard(name, step, rank))) / WORLD).backward()
        optimizer.step()
    return {key: p.detach() for key, p in model.named_parameters()}


def in_processes(wrap, name, options, checkpointing, folder):
    """Parameters after the same steps on several processes."""
    arguments = (wrap, name, options, checkpointing, str(folder))
    started = [PROCESSES.Process(target=train, args=(rank, *arguments), daemon=True) for rank in range(WORLD)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        if process.exitcode != 0:
            for other in started:
                other.kill()
            pytest.fail(f'a process ended with {process.exitcode}: its error is above')
    return torch.load(folder / 'parameters.pt')


@pytest.mark.parametrize('checkpointing', (False, True), ids=('', 'checkpointing'))
@pytest.mark.parametrize('wrap', (ddp, fsdp))
@pytest.mark.parametrize('name', MODELS)
def test_steps_are_those_without(name, wrap, checkpointing, tmp_path):
    assert_close(in_processes(wrap, name, {}, checkpointing, tmp_path), by_hand(name, {}))


@pytest.mark.parametrize('wrap', (accelerated_ddp, accelerated_fsdp), ids=('ddp', 'fsdp'))
@pytest.mark.parametrize('name', MODELS)
def test_steps_of_accelerated_models_are_those_without(name, wrap, tmp_path):
    found, expected = in_processes(wrap, name, {}, True, tmp_path), by_hand(name, {})
    for key, parameter in expected.items():
        assert_close(found[key].double(), parameter, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_of_a_backbone_has_a_gradient(name, tmp_path):
    """DDP refuses the second step of a model that has others."""
    options = dict(num_classes=0, global_pool='')
    assert_close(in_processes(ddp, name, options, False, tmp_path), by_hand(name, options))
