"""Lightning: training in its loop, its checkpoints resumed and loaded."""

import lightning
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from tests.clients.zoo import CLASSES, MODELS, TIMM, images, make


class Classifier(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def batches(name):
    return DataLoader(TensorDataset(images(name, 4), torch.arange(4) % CLASSES), batch_size=2)


def fit(name, folder, resumed=None):
    """A model trained for two epochs of two steps, each with a checkpoint, and the checkpoint of the last."""
    saved = ModelCheckpoint(folder, filename='{epoch}', save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator='cpu', max_epochs=2, logger=False, callbacks=[saved],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Classifier(make(name).train())
    trainer.fit(module, batches(name), ckpt_path=resumed)
    return module.model, folder / 'epoch=1.ckpt'


@pytest.fixture(params=MODELS)
def trained(request, tmp_path):
    return request.param, tmp_path, *fit(request.param, tmp_path)


def test_steps_are_those_of_a_loop(trained):
    name, _, found, _ = trained
    expected = make(name).train()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01, momentum=0.9)
    for x, target in [*batches(name), *batches(name)]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(x), target).backward()
        optimizer.step()
    assert_close(found.state_dict(), expected.state_dict())
    assert (found.head.weight - make(name).head.weight).abs().max() > 1e-4


def test_training_goes_on_from_a_checkpoint(trained):
    name, folder, straight, _ = trained
    found, _ = fit(name, folder / 'resumed', folder / 'epoch=0.ckpt')
    assert_close(found.state_dict(), straight.state_dict())


def test_a_checkpoint_loads_into_a_new_model(trained, request):
    name, _, model, checkpoint = trained
    if name == TIMM:
        request.applymarker(pytest.mark.xfail(strict=True, reason="timm does not take the prefix 'model.' off"))
    overlay = dict(file=str(checkpoint), num_classes=CLASSES)
    loaded = timm.create_model(name, num_classes=CLASSES, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_close(loaded.state_dict(), model.state_dict())
