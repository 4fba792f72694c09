"""Outputs on a grid: shapes, exactness of the bands, and what users of timm do with such models."""

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from timm_extra import hub
from timm_extra.models.perceiver import decoder, grid_tokens

DENSE = [
    dict(query_type='grid'),
    dict(query_type='grid', query_pos_embed='learned', query_dim=20, dynamic_img_size=True),
    dict(query_type='grid', stem='conv'),
    dict(query_type='grid', stem='patches', patch_size=4),
    dict(query_type='inputs'),
    dict(query_type='inputs', decoder_residual=False, decoder_mlp=False),
    dict(query_type='inputs', pos_embed='learned', pos_dim=12, dynamic_img_size=True),
    dict(query_type='inputs', cross_num_heads=2, cross_head_dim=8),
    dict(query_type='inputs', stem='conv1x1', stem_chs=6, compat='lucidrains'),
]


def dense_model(dtype=torch.float32, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model('test_perceiver_io', img_size=16, num_classes=5, dtype=dtype, **kwargs)
    nn.init.normal_(model.head.weight)  # begins at zero
    return model.eval()


@pytest.mark.parametrize('kwargs', DENSE, ids=str)
def test_an_output_for_each_position(kwargs):
    model = dense_model(**kwargs)
    smaller = 4 if kwargs['query_type'] == 'inputs' and kwargs.get('stem') in ('conv', 'patches') else 1
    for height, width in ((16, 16), (8, 20)):
        out = model(torch.randn(2, 3, height, width))
        assert out.shape == (2, 5, height // smaller, width // smaller)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 16, 16)).shape[1] == 7
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 16, 16)).shape[1] == model.head_hidden_size


def test_one_and_three_axes_points_and_tokens():
    small = dict(num_latents=6, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2, num_bands=3, num_classes=4)
    audio = timm.create_model('perceiver_io_small', stem='patches', patch_size=4, img_size=(40,), in_chans=1,
                              query_type='grid', **small)  # fmt: skip
    assert audio(torch.randn(2, 1, 40)).shape == (2, 4, 40)
    video = timm.create_model('perceiver_io_small', img_size=(3, 5, 6), query_type='inputs', **small)
    assert video(torch.randn(2, 3, 3, 5, 6)).shape == (2, 4, 3, 5, 6)
    points = timm.create_model('perceiver_io_small', stem='points', img_size=9, max_resolution=20, in_chans=4,
                               query_type='inputs', **small)  # fmt: skip
    assert points(torch.randn(2, 11, 4)).shape == (2, 4, 11)


@pytest.mark.parametrize('kwargs', DENSE, ids=str)
@pytest.mark.parametrize('band', [1, 37, 1 << 13])
def test_bands_change_neither_outputs_nor_gradients(kwargs, band, monkeypatch):
    x = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    model = dense_model(torch.float64, **kwargs)
    results = []
    for route, checkpointing in (('plain', False), ('separable', False), ('separable', True)):
        model.decoder.attn.route = route
        model.set_grad_checkpointing(checkpointing)
        monkeypatch.setattr(decoder, 'BAND', band)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in results[1:]:
        assert len(other) == len(results[0])
        for ours, plain in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('watched', ['decoder', 'decoder.norm2', 'decoder.attn.q', 'head'])
def test_hooks_see_all_positions_at_once(watched, monkeypatch):
    monkeypatch.setattr(decoder, 'BAND', 16)
    model, x, seen = dense_model(query_type='inputs'), torch.randn(2, 3, 16, 16), []
    expected = model(x)
    model.get_submodule(watched).register_forward_hook(lambda m, args, out: seen.append(out.shape[:2]))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert seen == [(2, 256)]


def test_dropped_paths_are_those_of_whole_items(monkeypatch):
    monkeypatch.setattr(decoder, 'BAND', 16)
    model = dense_model(query_type='inputs')
    model.decoder.drop_path = DropPath(0.5)
    model.decoder.train()
    out = model(torch.randn(1, 3, 16, 16).expand(64, -1, -1, -1)).detach()
    assert len({round(float(o.sum()), 2) for o in out}) == 4  # either half of the block, both or none


def test_head_on_latents_decodes_the_nominal_grid():
    model = dense_model(query_type='grid')
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    inputs = dense_model(query_type='inputs')
    with pytest.raises(AssertionError, match='come from the inputs: call forward, or pass queries'):
        inputs.forward_head(inputs.forward_features(x))
    assert inputs(x, queries=torch.randn(7, inputs.head_hidden_size)).shape == (2, 7, 5)


def test_another_nominal_size_keeps_frequencies_and_resamples_positions():
    fourier = dense_model(query_type='grid')
    x = torch.randn(1, 3, 24, 8)
    before = fourier(x)
    fourier.set_input_size((24, 8))
    torch.testing.assert_close(fourier(x), before)
    learned = dense_model(query_type='grid', query_pos_embed='learned', dynamic_img_size=True)
    before = learned(x)
    learned.set_input_size((24, 8))
    assert learned.query.shape[0] == 24 * 8
    torch.testing.assert_close(learned(x), before)
    fixed = dense_model(query_type='grid', query_pos_embed='learned')
    with pytest.raises(AssertionError, match=r'Outputs are \[24, 8\], learned positions of queries are for \[16, 16\]'):
        fixed(x)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(query_type='pixels'), "query_type must be one of .*, got 'pixels'"),
        (dict(query_type='grid', query_pos_embed='none'), "query_pos_embed must be 'fourier' or 'learned', got 'none'"),
        (dict(query_type='grid', stem='points', max_resolution=9), "query_type='grid' needs inputs on a grid"),
        (
            dict(query_type='grid', query_max_resolution=(8, 8, 8)),
            'query_max_resolution must be positive, one number or 2',
        ),
        (dict(query_type='grid', query_max_resolution='a'), 'query_max_resolution must be positive.*, got a'),
        (dict(query_type='grid', query_pos_embed='learned', query_dim=0), 'query_dim must be at least 1, got 0'),
        (dict(query_type='grid', pos_embed='learned', num_bands=0), 'num_bands must be at least 1, got 0'),
        (dict(query_type='inputs', query_dim=7), "query_type='inputs' takes no query_dim here, got 7"),
        (dict(query_type='grid', num_queries=3), "query_type='grid' takes no num_queries here, got 3"),
        (dict(query_max_resolution=8), "query_type='learned' takes no query_max_resolution here, got 8"),
        (dict(out_scale=float('nan')), 'out_scale must be finite, got nan'),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('test_perceiver_io', **kwargs)


@pytest.mark.parametrize('kwargs', DENSE[:2] + DENSE[4:5], ids=str)
def test_scripted_compiled_and_exported(kwargs):
    model, x = dense_model(**kwargs), torch.randn(2, 3, 16, 16)
    expected = model(x)
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(model)(x), expected, **close)
    torch.testing.assert_close(torch.compile(model, backend='aot_eager', fullgraph=True)(x), expected, **close)
    batch, size = torch.export.Dim('batch', min=1, max=64), torch.export.Dim('size', min=8, max=64)
    shapes = ({0: batch, 2: size, 3: size},) if kwargs.get('query_pos_embed') != 'learned' else ({0: batch},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x), expected, **close)
    other = torch.randn(3, 3, *(16, 16) if len(shapes[0]) == 1 else (20, 20))
    torch.testing.assert_close(program.module()(other), model(other), **close)


@pytest.mark.parametrize('kwargs', DENSE, ids=str)
def test_a_batch_of_none(kwargs):
    model = dense_model(**kwargs)
    assert model(torch.randn(0, 3, 16, 16)).shape == (0, *model(torch.randn(1, 3, 16, 16)).shape[1:])


@pytest.mark.parametrize('kwargs', DENSE, ids=str)
@pytest.mark.parametrize('max_resolution', [224, None])
def test_saved_weights_give_the_same_at_another_nominal_size(kwargs, max_resolution, tmp_path):
    fixed = dict(max_resolution=max_resolution) if kwargs.get('pos_embed') != 'learned' else {}
    model = dense_model(**kwargs, **fixed)
    hub.save(model, tmp_path)
    x = torch.randn(1, 3, 24, 20)
    other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=(24, 20)).eval()
    if kwargs.get('query_pos_embed', kwargs.get('pos_embed')) == 'learned' or max_resolution:
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-4)
    if other.query_resolution:
        assert other.query_resolution == model.query_resolution


@pytest.mark.parametrize('name', ['perceiver_io_small', 'perceiver_io_base_conv'])
def test_frequencies_of_pixels_are_those_of_the_published_size(name):
    with torch.device('meta'):
        for size in (224, 448):
            assert timm.create_model(name, query_type='grid', img_size=size).query_resolution == [224, 224]


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(query_type='inputs'),
        dict(query_type='grid', query_pos_embed='learned'),
        dict(query_type='inputs', cross_num_heads=4, cross_head_dim=5),
        dict(query_type='grid', attn_drop_rate=0.1),
    ],
    ids=str,
)
def test_checkpointing_keeps_nothing_of_the_decoder(kwargs):
    model = timm.create_model('test_perceiver_io', img_size=64, num_classes=5, **kwargs).train()
    inputs, z = model.stem(torch.zeros(1, 3, 64, 64))[0], torch.zeros(1, 16, 64)
    queries = inputs if model.query_type == 'inputs' else model._grid_queries([64, 64], z)
    kept = {}
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        kept[checkpointing] = 0

        def keep(tensor, checkpointing=checkpointing):
            kept[checkpointing] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model._decode_grid(z, queries, [64, 64])
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize('kwargs', [dict(query_type='inputs'), dict(query_type='grid'), DENSE[1]], ids=str)
def test_transforms_of_functions(kwargs):
    model, x = dense_model(torch.float64, **kwargs), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    mapped = torch.func.vmap(lambda one: model(one[None])[0])(x)
    torch.testing.assert_close(mapped, model(x), rtol=1e-10, atol=1e-10)


def test_the_factor_of_outputs_holds_for_queries_of_ones_own():
    model = dense_model(query_type='inputs', out_scale=0.2)
    x = torch.randn(1, 3, 16, 16)
    inputs, _ = model.stem(x)
    tokens = grid_tokens(inputs.content, inputs.axes)
    out = model(x, queries=tokens).transpose(1, 2).unflatten(2, (16, 16))
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-4)
