"""DeepMind's own logits, from weights that depend on their names: `recipe` in the data file says how they were made."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import timm_extra  # noqa: F401
from timm_extra.models.perceiver import checkpoint_filter_fn

GOLDEN = json.loads((Path(__file__).with_name('golden.json')).read_text())
NORMS = ('.layernorm.weight', '.layernorm1.weight', '.layernorm2.weight', 'batchnorm.weight')
STEMS = {
    'fourier': dict(num_bands=6, max_resolution=32),
    'v1': dict(num_bands=6, max_resolution=32),
    'conv': dict(stem='conv', stem_chs=8, num_bands=6, max_resolution=8),
    'learned': dict(
        stem='conv1x1', stem_chs=12, pos_embed='learned', pos_dim=10, pos_proj_dim=12, decoder_residual=False
    ),
}
SMALL = dict(num_latents=16, latent_dim=32, num_heads=4, block_depth=2, num_blocks=3, num_classes=10)
PAPER = {
    'learned': 'perceiver_io_base_learned',
    'fourier': 'perceiver_io_base',
    'conv': 'perceiver_io_base_conv',
}


def drawn(name, shape):
    """Values by the recipe, from a parameter's name in the layout of transformers."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(NORMS):
        z = 1 + 0.1 * z
    elif name.endswith('running_var'):
        z = 1 + 0.5 * np.abs(z)
    elif name.endswith(('latents', 'position_embeddings')):
        z = 0.5 * z
    elif name.endswith('.weight') and len(shape) in (2, 4):
        z = z / np.sqrt(np.prod(shape[1:]))
    else:
        z = 0.1 * z
    return torch.from_numpy(z)


def block(prefix, dim, kv_dim=None):
    """Names and shapes of a block: cross-attention with `kv_dim`, else self-attention."""
    width = kv_dim or dim
    shapes = {'attention.self.layernorm1': (dim,), 'layernorm': (dim,)}
    if kv_dim:
        shapes['attention.self.layernorm2'] = (kv_dim,)
    shapes['attention.self.query'] = (width, dim)
    shapes['attention.self.key'] = shapes['attention.self.value'] = (width, width)
    shapes['attention.output.dense'] = (dim, width)
    shapes['mlp.dense1'] = shapes['mlp.dense2'] = (dim, dim)
    for name, shape in shapes.items():
        yield f'{prefix}.{name}.weight', shape
        yield f'{prefix}.{name}.bias', shape[:1]


def state_dict(kind, latents, dim, depth, classes, channels, stem):
    """A checkpoint in the layout of transformers; of v1, which that lacks, by the recipe's names."""
    if kind == 'v1':
        shapes = dict(block('cross_attends.0', dim, channels))
        shapes.update(block('cross_attends.1', dim, channels))
        for i in range(depth):
            shapes.update(block(f'self_attends.{i}', dim))
        shapes.update({'latents': (latents, dim), 'head.weight': (classes, dim), 'head.bias': (classes,)})
        return {k: drawn(k, v) for k, v in shapes.items()}
    shapes = dict(block('perceiver.encoder.cross_attention', dim, channels))
    for i in range(depth):
        shapes.update(block(f'perceiver.encoder.self_attends.{i}', dim))
    decoder = 'perceiver.decoder.decoder'
    shapes.update(block(f'{decoder}.decoding_cross_attention', dim, dim))
    shapes['perceiver.embeddings.latents'] = (latents, dim)
    shapes[f'{decoder}.final_layer.weight'] = (classes, dim)
    shapes[f'{decoder}.final_layer.bias'] = (classes,)
    shapes[f'{decoder}.output_position_encodings.position_embeddings'] = (1, dim)
    for name, shape in stem.items():
        shapes[f'perceiver.input_preprocessor.{name}'] = shape
    return {k: drawn(k, v) for k, v in shapes.items()}


def stem_shapes(kind, grid, chs, pos):
    if kind == 'conv':
        norm = {f'convnet.batchnorm.{n}': (chs,) for n in ('weight', 'bias', 'running_mean', 'running_var')}
        return {'convnet.conv.weight': (chs, 3, 7, 7), **norm}
    if kind == 'learned':
        return {
            'convnet_1x1.weight': (chs, 3, 1, 1),
            'convnet_1x1.bias': (chs,),
            'position_embeddings.position_embeddings': (grid[0] * grid[1], pos),
            'positions_projection.weight': (chs, pos),
            'positions_projection.bias': (chs,),
        }
    return {}


def images(case):
    height, width = case['size']
    random = np.random.RandomState(zlib.crc32(f'image {height}x{width}'.encode()))
    return torch.from_numpy(random.standard_normal((case['batch'], height, width, 3))).permute(0, 3, 1, 2)


def named(part):
    return [pytest.param(c, id=c['name']) for c in GOLDEN['cases'] if c['name'].startswith(part)]


@pytest.mark.parametrize('case', named('small'))
@pytest.mark.parametrize('route', ['separable', 'folded', 'plain'])
def test_small_models(case, route):
    kind = case['kind']
    model = timm.create_model(
        'test_perceiver' if kind == 'v1' else 'test_perceiver_io',
        img_size=case['size'],
        cross_route=route,
        dtype=torch.float64,
        **SMALL,
        **STEMS[kind],
    ).eval()
    stem = stem_shapes(kind, case['size'], model.stem.conv.out_channels if kind in ('conv', 'learned') else 0, 10)
    given = state_dict(kind, 16, 32, 2, 10, model.stem.out_chans, stem)
    if kind == 'v1':  # transformers has no such model: the names of its parts stand where the filter expects them
        given = {k.replace('self_attends.', 'perceiver.encoder.self_attends.'): v for k, v in given.items()}
        given['perceiver.embeddings.latents'] = given.pop('latents')
    model.load_state_dict(checkpoint_filter_fn(given, model))
    with torch.no_grad():
        logits = model(images(case))
    torch.testing.assert_close(logits, torch.tensor(case['logits'], dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize('case', named('paper'))
def test_paper_models(case):
    kind = case['kind']
    channels = {'learned': 512, 'fourier': 261, 'conv': 322}[kind]
    stem = stem_shapes(kind, (224, 224), {'learned': 256, 'conv': 64}.get(kind), 256)
    given = {k: v.float() for k, v in state_dict(kind, 512, 1024, 6, 1000, channels, stem).items()}
    model = timm.create_model(
        PAPER[kind], pretrained=True, pretrained_cfg_overlay=dict(state_dict=given, hf_hub_id=None)
    ).eval()
    with torch.no_grad():
        logits = model(images(case).float())[0]
    torch.testing.assert_close(logits[:16], torch.tensor(case['logits_first16']), rtol=0, atol=1e-4)
    assert int(logits.argmax()) == case['argmax']
    assert float(logits.norm()) == pytest.approx(case['l2norm'], abs=1e-3)
    assert float(logits.mean()) == pytest.approx(case['mean'], abs=1e-5)
