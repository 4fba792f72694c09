"""Calls of the public functions as users write them; mypy checks arguments and results (tests/test_typing.py)."""

from pathlib import Path
from typing import Any, Dict, List, Union

import torch
from torch import nn
from torch.utils.data import Dataset
from typing_extensions import assert_type

from timm_extra import demo, doctor, flow, hub, images, inference, plot
from timm_extra.models import GLOM, CeiT, Perceiver, PerceiverIO
from timm_extra.models.ceit import ceit_small, checkpoint_filter_fn
from timm_extra.models.glom import adjusted_rand_index, island_labels
from timm_extra.models.info import class_labels, list_names
from timm_extra.models.perceiver import perceiver_base, perceiver_io_base
from timm_extra.pretrain import BYOL, Denoise, PixPro, PretrainConfig, Pretrained, SimSiam, pretrain


def models() -> None:
    """Classes and entry points; `register_model` hides what these return."""
    ceit: CeiT = ceit_small(num_classes=10)
    perceivers: List[Perceiver] = [perceiver_base(), perceiver_io_base()]
    assert_type(ceit(torch.zeros(1, 3, 224, 224)), Any)
    assert_type(ceit.forward_features(torch.zeros(1, 3, 224, 224)), torch.Tensor)
    assert_type(perceivers[0].forward_features(torch.zeros(1, 3, 64, 64)), torch.Tensor)
    assert_type(PerceiverIO().latents, nn.Parameter)
    assert_type(GLOM(embed_dim=64).forward_state(torch.zeros(1, 3, 224, 224)), torch.Tensor)
    assert_type(list_names('ceit_*'), List[str])
    checkpoint_filter_fn({}, CeiT())


def weights(model: nn.Module) -> None:
    """Folders and the Hub."""
    assert_type(hub.save(model, 'folder'), Path)
    assert_type(hub.push(model, 'OWNER/NAME', private=True), str)
    assert_type(hub.load('OWNER/NAME', model_args={'num_classes': 10}), nn.Module)
    assert_type(hub.pull('OWNER/NAME', 'folder'), Path)
    assert_type(hub.convert('file.pth', 'folder', 'ceit_small').mapped, Dict[str, List[str]])


def results(model: nn.Module, ceit: CeiT, glom: GLOM, x: torch.Tensor) -> None:
    """Predictions, exports and pictures."""
    for prediction in inference.predict(model, ['photo.jpg', Path('photos')], topk=3):
        assert_type(prediction, inference.Prediction)
        assert_type(prediction.guesses[0].probability, float)
    assert_type(inference.export(model, 'model.onnx', input_size=(3, 224, 224)).largest_error, float)
    assert_type(class_labels(model), List[str])
    assert_type(plot.plot_attention(ceit, 'photo.jpg', 'attention.png'), str)
    assert_type(plot.plot_islands(glom, 'photo.jpg', 'islands.png'), List[plot.LevelIslands])
    assert_type(adjusted_rand_index(island_labels(x, (7, 7)), x.long()), torch.Tensor)
    assert_type(images.as_tensor(images.read_image('photo.jpg'), 3), torch.Tensor)
    moved = flow.estimate_flow(model, 'first.png', images.read_image('second.png'))
    assert_type(moved, torch.Tensor)
    assert_type(flow.read_flo(flow.write_flo(moved, 'moved.flo')), torch.Tensor)
    assert_type(flow.flow_loss(moved, moved), torch.Tensor)
    for pair in flow.estimate_video_flow(model, flow.open_video('clip.mp4')):
        assert_type(pair, flow.VideoFlow)
    for files in plot.plot_flow(model, flow.open_frames(['first.png', 'second.png']), 'flow'):
        assert_type(files.mean, float)
    assert_type(plot.flow_colours(moved), torch.Tensor)
    assert_type(doctor.doctor(hub=False).problems, List[str])
    demo.run_demo('output/demo', epochs=1)


def training(model: nn.Module, dataset: 'Dataset[torch.Tensor]') -> None:
    """Pretraining and its tasks."""
    config = PretrainConfig(method='byol', epochs=100, lr=0.1, scale=(0.2, 1.0))
    assert_type(pretrain(model, dataset, 'output', config), Pretrained)
    tasks: List[Union[BYOL, SimSiam, PixPro, Denoise]] = [BYOL(model, projection_size=128), SimSiam(model)]
    tasks += [PixPro(model, threshold=0.7), Denoise(model)]
    assert_type(tasks[0].denoise(torch.zeros(1)) if isinstance(tasks[0], Denoise) else None, Union[torch.Tensor, None])
