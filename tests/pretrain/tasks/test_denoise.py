"""GLOM denoising against glom-pytorch's README, and what else it promises."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import nn

import timm_extra  # noqa: F401
from timm_extra.pretrain.tasks import Denoise
from timm_extra.pretrain.views import DENOISE_VIEW, RandomView

SIZE = (3, 56, 56)


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_glom', **kwargs)


def images(n=3, size=SIZE, dtype=torch.float64):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    'size, iteration, level', [((3, 56, 56), None, -1), ((1, 28, 70), 7, 1), ((2, 14, 14), 3, -3), ((1, 14, 28), 4, 2)]
)
def test_it_is_what_glom_pytorchs_readme_has(size, iteration, level):
    net = model(in_chans=size[0], img_size=size[1:]).double()
    task = Denoise(net, iteration=iteration, level=level)
    with torch.no_grad():
        task.trainable_module.decoder.bias.normal_()  # 0 hides an order that is wrong
    net, decoder = copy.deepcopy(net), copy.deepcopy(task.trainable_module.decoder)
    img = images(size=size)
    torch.manual_seed(5)
    out = task([img])

    patches_to_images = nn.Sequential(
        decoder, Rearrange('b (h w) (p1 p2 c) -> b c (h p1) (w p2)', p1=14, p2=14, h=size[1] // 14)
    )
    torch.manual_seed(5)
    noised_img = img + torch.randn_like(img)
    all_levels = net.forward_state(noised_img, iters=12, return_all=True)
    top_level = all_levels[4 if iteration is None else iteration, :, :, level]
    recon_img = patches_to_images(top_level)
    loss = F.mse_loss(img, recon_img)

    torch.testing.assert_close(out['loss'], loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out['output'], recon_img.detach(), atol=1e-12, rtol=1e-12)
    out['loss'].backward()
    loss.backward()
    for (name, ours), theirs in zip(task.model.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(_grad(ours), _grad(theirs), atol=1e-12, rtol=1e-9, msg=name)
    torch.testing.assert_close(task.trainable_module.decoder.weight.grad, decoder.weight.grad, atol=1e-12, rtol=1e-9)


def _grad(p):
    return torch.zeros_like(p) if p.grad is None else p.grad


def test_seven_of_twelve_iterations_is_the_default():
    assert Denoise(model(num_levels=6)).trainable_module.iteration == 7
    assert Denoise(model(iters=3)).trainable_module.iteration == 3  # sooner the top has not seen the image


def test_the_gradient_reaches_all_but_the_classifier():
    task = Denoise(model())
    task(torch.rand(2, *SIZE))['loss'].backward()
    without = {n for n, p in task.trainable_module.named_parameters() if p.grad is None or not p.grad.any()}
    head = {n for n, _ in task.trainable_module.named_parameters() if '.head.' in n or '.fc_norm.' in n}
    assert without == head
    assert all(p.grad is not None for p in task.trainable_module.decoder.parameters())


def test_noise_between_two_levels_is_drawn_for_every_image():
    task = Denoise(model(), noise=(0.5, 2.0))
    clean = torch.zeros(400, *SIZE)
    torch.manual_seed(0)
    spreads = task.add_noise(clean).flatten(1).std(1)
    assert 0.49 < spreads.min() < 0.53 and 1.94 < spreads.max() < 2.04
    assert spreads.mean() == pytest.approx(1.25, abs=0.07)
    assert Denoise(model(), noise=0.25).add_noise(clean).std() == pytest.approx(0.25, rel=0.01)
    assert torch.equal(Denoise(model(), noise=0).add_noise(clean), clean)


@pytest.mark.parametrize(
    'schedule, expected', [('linear', lambda p: p), ('cosine', lambda p: (1 - math.cos(math.pi * p)) / 2)]
)
def test_noise_grows(schedule, expected):
    task = Denoise(model(), noise=2.0, noise_schedule=schedule, num_steps=10)
    clean = torch.zeros(50, *SIZE)
    for step in range(12):
        assert task.add_noise(clean).std() == pytest.approx(2 * expected(min(step / 10, 1)), rel=0.02)
        task.update_ema(step)
    task.update_ema()
    assert task.step == 13


def test_checkpoints_hold_everything():
    task = Denoise(model(), noise_schedule='linear', num_steps=10)
    task.update_ema(6)
    state = task.get_checkpoint_state()
    timm.create_model('test_glom').load_state_dict(state['state_dict'])  # no decoder
    assert not any('decoder' in name for name in task.get_eval_model().state_dict())
    assert state['task_state'].keys() == {'decoder', 'step'}
    other = Denoise(model(), noise_schedule='linear', num_steps=10)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    for (name, a), (_, b) in zip(task.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert other.step == 7


def test_images_get_a_crop_and_a_flip():
    task = Denoise(model())
    x = torch.rand(2, 3, 80, 70)
    assert isinstance(task.view1, RandomView) and task.views == (task.view1,)
    recipe = task.view1.recipe
    assert recipe == DENOISE_VIEW and recipe.scale == (0.35, 1.0) and recipe.hflip == 0.5
    assert not recipe.jitter and not recipe.grey and not recipe.blur and not recipe.solarize
    out = task(x)
    assert out.keys() == {'loss', 'output'} and out['output'].shape == (2, *SIZE)
    assert not out['output'].requires_grad
    mine = Denoise(model(), view1=lambda x: 2 * x, noise=0.0)
    y = torch.rand(2, *SIZE)
    assert torch.equal(mine(y)['loss'], mine((2 * y,))['loss'])


def test_denoise_is_the_trained_network():
    task = Denoise(model(), noise=0.0).eval()
    x = images(2, dtype=torch.float32)
    denoised = task.denoise(x)
    assert denoised.shape == x.shape and not denoised.requires_grad
    assert torch.equal(denoised, task([x])['output'])


def test_construction_changes_nothing_in_the_model():
    net = model().train()
    net.patch_embed.eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    task = Denoise(net)
    assert task.model is net and task.encoder.model is net
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_loss_is_in_float32_under_autocast(dtype):
    task = Denoise(model())
    x = images(2, dtype=torch.float32)
    found = []
    for enabled in (True, False):
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype, enabled=enabled):
            found.append(task([x])['loss'])
    low, full = (float(loss.detach()) for loss in found)
    assert found[0].dtype == torch.float32
    assert low != full and low == pytest.approx(full, rel=0.02)
    found[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def test_denoise_names_bad_arguments():
    with pytest.raises(ValueError, match='ResNet is no GLOM: it has no forward_level and no patch_embed'):
        Denoise(timm.create_model('test_resnet'))
    for kwargs, message in (
        (dict(iteration=0), '`iteration` must be positive, got 0'),
        (dict(iteration=2), 'after iters 2 level 2 has not seen the image'),
        (dict(level=3), '`level=3` is out of range, the model has 3 levels'),
        (dict(level=-4), '`level=-4` is out of range'),
        (dict(noise=-0.1), r'`noise` must be a standard deviation or two, the smaller first, got -0\.1'),
        (dict(noise=(1.0, 0.5)), r'got \(1\.0, 0\.5\)'),
        (dict(noise=[0.1, 0.2, 0.3]), r'got \[0\.1, 0\.2, 0\.3\]'),
        (dict(noise=math.inf), 'got inf'),
        (dict(noise=math.nan), 'got nan'),
        (dict(noise_schedule='steps', num_steps=3), "`noise_schedule` must be None, linear or cosine, got 'steps'"),
        (dict(noise_schedule='linear'), "`noise_schedule='linear'` needs num_steps"),
        (dict(num_steps=0), 'num_steps must be positive, got 0'),
        (dict(input_size=(1, 56, 56)), 'GLOM does not take inputs of 1×56×56: '),
        (dict(input_size=(3, 28, 56)), 'GLOM does not take inputs of 3×28×56: '),
    ):
        with pytest.raises(ValueError, match=message):
            Denoise(model(), **kwargs)
    with pytest.raises(ValueError, match='GLOM does not take inputs of 3×60×56: '):
        Denoise(model(dynamic_img_size=True), input_size=(3, 60, 56))
    with pytest.raises(ValueError, match=r'images, or a list of views \(1\), got 2 tensors'):
        Denoise(model())([images()] * 2)
