"""A tiny pretraining that tests start and compare: `python train.py OUTPUT METHOD BATCH_SIZE [resume] [exact]`."""

import sys

import timm
import torch
from torch.utils.data import TensorDataset

from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.training.log import read_log

STEPS = 24


def images(n=64, exact=False):
    """Random images in four classes that differ in brightness; uint8, or float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 20, 20, generator=generator) * 0.5 + torch.arange(n).view(n, 1, 1, 1) % 4 / 8
    return TensorDataset(x.double() if exact else (255 * x).to(torch.uint8), torch.arange(n) % 4)


def run(output, method='byol', batch_size=8, exact=False, probe=None, view1=None, view2=None, dataset=None, **options):
    """Train with all that has a state: drop path, momentum, schedule, target, probe.

    `exact` trains in float64 and without drop path, whose draws are for places in a batch.
    """
    torch.manual_seed(1)
    net = dict(name='test_glom', img_size=16, patch_size=4) if method == 'glom' else dict(name='test_resnet')
    model = timm.create_model(net.pop('name'), **net, num_classes=3, in_chans=1, drop_path_rate=0.0 if exact else 0.2)
    own = dict(
        byol=dict(task_args=dict(projection_size=8, projection_hidden_size=16)),
        simsiam=dict(task_args=dict(projection_size=16)),
        glom=dict(noise=(0.1, 0.5), noise_schedule='linear'),
        pixpro=dict(task_args=dict(projection_size=8, projection_hidden_size=16, feature_index=2)),
    )
    defaults = dict(
        num_train_steps=STEPS, log_interval=1, checkpoint_interval=3, workers=0, seed=2, cpu=True,
        input_size=(1, 16, 16), lr=0.01 if method == 'glom' else 0.05, batch_size=batch_size, **own[method],
    )  # fmt: skip
    config = PretrainConfig(method=method, **{**defaults, **options})
    model = model.double() if exact else model
    dataset = dataset or images(exact=exact)
    return pretrain(model, dataset, output, config, probe=probe, view1=view1, view2=view2)


def losses(output):
    """What a training has logged, in all its digits."""
    return [(row['step'], row['loss'], row['std'], row['knn']) for row in read_log(output / 'log.csv')]


def equal(a, b):
    """Check that two checkpoints hold the same."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            equal(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


if __name__ == '__main__':
    torch.set_num_threads(1)
    output, method, batch_size, *words = sys.argv[1:]
    exact = 'exact' in words
    run(output, method, int(batch_size), exact, resume='resume' in words, probe=(images(exact=exact),) * 2)
