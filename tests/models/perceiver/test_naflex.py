"""Images of different sizes in one batch, as timm's NaFlex loader makes them."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_naflex_loader
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import patchify_image
from timm.models.naflexvit import NaFlexEmbeds
from torch.testing import assert_close

from timm_extra import hub
from timm_extra.demo import write_digits
from timm_extra.models.perceiver.stems import naflex

SMALL = dict(num_latents=8, latent_dim=32, num_blocks=2, block_depth=1, num_heads=2, num_bands=4, num_classes=5)
SIZES = [(29, 31), (4, 4), (3, 50), (17, 16)]  # prime, one patch, a strip, and one pixel more than whole patches
MODELS = {
    'patch_embed': ('naflex_perceiver_io_small', dict(patch_size=4, stem_chs=16)),
    'patch_embed of v1': ('naflex_perceiver_small', dict(patch_size=(2, 3), stem_chs=16)),
    'pixels': ('perceiver_io_small', {}),
    'grey pixels as three': ('perceiver_small', dict(in_chans=1, grey_chans=3)),
    'patches': ('perceiver_small', dict(stem='patches', patch_size=4)),
    'inputs as queries': ('perceiver_io_small', dict(query_type='inputs')),
}


def make(name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **options}).to(dtype).eval()
    if isinstance(model.head, torch.nn.Linear):
        torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def images(model, dtype=torch.float32, sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    steps = model.get_patch_size() if model.stem.kind == 'patches' else (1, 1)  # takes whole patches alone
    shapes = [(-(-h // steps[0]) * steps[0], -(-w // steps[1]) * steps[1]) for h, w in sizes]
    return [torch.randn(model.in_chans, *shape, generator=generator, dtype=dtype) for shape in shapes]


def batch_of(images, patch_size, flat=True, padding=3):
    """timm's batch of images, in their dtype."""
    made = [patchify_image(image, patch_size, flatten_patches=flat) for image in images]
    dicts = [dict(zip(('patches', 'patch_coord', 'patch_valid'), one, strict=True)) for one in made]
    batch, _ = NaFlexCollator(max(len(one[0]) for one in made) + padding)([(one, 0) for one in dicts])
    batch['patches'] = batch['patches'].to(images[0].dtype)
    for row, one in zip(batch['patches'], dicts, strict=True):  # timm's rounds to float32
        row[: len(one['patches'])] = one['patches']
    return batch


@pytest.mark.parametrize('dtype, atol', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('flat', [True, False])
@pytest.mark.parametrize('name, options', MODELS.values(), ids=MODELS)
def test_each_image_is_as_it_is_alone(name, options, flat, dtype, atol):
    model = make(name, dtype, **options)
    given = images(model, dtype)
    together = model(batch_of(given, model.get_patch_size(), flat))
    targets = [torch.randn(5, dtype=dtype) for _ in given]

    def gradients(outs):
        loss = sum((out.flatten(1).sum(1) @ target) for out, target in zip(outs, targets, strict=True))
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    def of_patches(out, alone):
        """Logits (5, …), where inputs are queries those of an image's own patches."""
        return out[..., : alone.shape[-1]] if alone.ndim > 1 else out

    alone = [model(image[None])[0].flatten(1) if together.ndim > 2 else model(image[None])[0] for image in given]
    ours = [of_patches(out, one) for out, one in zip(together, alone, strict=True)]
    scale = max(1.0, max(one.abs().max().item() for one in alone))
    for a, b in zip(ours, alone, strict=True):
        assert_close(a, b, atol=atol * scale, rtol=0)
    for a, b in zip(gradients([o.view(5, -1) for o in ours]), gradients([o.view(5, -1) for o in alone]), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, atol=10 * atol * max(1.0, b.abs().max().item()), rtol=0)


@pytest.mark.parametrize('size', [(1, 1), (5, 5), (4, 7), (32, 32), (16, 16)])
def test_patches_of_another_size_are_embedded_as_by_timm(size):
    model = make('naflex_perceiver_io_small', stem_chs=24)
    timms = NaFlexEmbeds(16, in_chans=3, embed_dim=24, proj_type='linear', pos_embed='none', class_token=False,
                         pos_embed_grid_size=(8, 8), enable_patch_interpolator=True)  # fmt: skip
    timms.proj.load_state_dict(model.stem.proj.state_dict())
    batch = batch_of(images(model, sizes=[(33, 64), (70, 40)]), size, flat=False)
    with torch.no_grad():
        ours = model.stem(batch)[0].content[..., :24]
        theirs = timms(batch['patches'], batch['patch_coord'], batch['patch_valid'])[0]
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert model(batch).shape == (2, 5)


def test_weights_of_pixels_take_mixed_sizes_as_they_are():
    model = make('perceiver_io_base', block_depth=0, num_bands=64)
    given = images(model)
    alone = torch.cat([model(image[None]) for image in given])
    assert_close(model(batch_of(given, (1, 1))), alone, atol=1e-5, rtol=1e-5)


def test_padding_has_no_influence():
    model = make('naflex_perceiver_small', patch_size=4)
    batch = batch_of(images(model), (4, 4))
    other = {**batch, 'patches': batch['patches'].clone(), 'patch_coord': batch['patch_coord'].clone()}
    other['patches'][~batch['patch_valid']] = 7.0
    other['patch_coord'][~batch['patch_valid']] = 99
    assert torch.equal(model(batch), model(other))
    batch['patch_valid'][1] = False
    assert torch.isfinite(model(batch)).all()


def test_features_latents_and_checkpointing_take_batches():
    model = make('naflex_perceiver_small', patch_size=4).train()
    batch = batch_of(images(model), (4, 4))
    latents, between = model.forward_intermediates(batch)
    assert [z.shape for z in between] == [(4, 8, 32)] * 2 and torch.equal(latents, model.forward_features(batch))
    expected = torch.autograd.grad(model(batch).sum(), model.latents)[0]
    model.set_grad_checkpointing()
    assert_close(torch.autograd.grad(model(batch).sum(), model.latents)[0], expected)


def test_batches_compile_with_resize_matrices_as_constants():
    model = make('naflex_perceiver_io_small', patch_size=4)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for size in ((4, 4), (7, 7), (3, 5)):
        batch = batch_of(images(model), size, flat=False)
        assert_close(compiled(batch), model(batch))
    assert graphs and not any('linalg' in str(node.target) for graph in graphs for node in graph.graph.nodes)


def test_resize_matrices_do_not_depend_on_what_made_them():
    model = make('naflex_perceiver_io_small', patch_size=4)
    with torch.no_grad():
        naflex._matrices.clear()
        batches = [batch_of(images(model), size, flat=False) for size in ((8, 8), (9, 9), (10, 10), (11, 11))]
        expected = [model(batch) for batch in batches]
        naflex._matrices.clear()
        with torch.autocast('cpu', torch.bfloat16):
            model(batches[0])
        torch.export.export(model, (batches[1],))
        with torch.device('meta'):
            model(batches[2])
        with torch.inference_mode():
            model(batches[3])
        for batch, known in zip(batches, expected, strict=True):
            assert torch.equal(model(batch), known)
    model(batches[3]).sum().backward()


def test_half_precision_gives_what_images_give():
    model = make('naflex_perceiver_io_small', torch.bfloat16, patch_size=4)
    given = images(model, torch.bfloat16)
    alone = torch.cat([model(image[None]) for image in given])
    assert_close(model(batch_of(given, (4, 4))), alone, atol=2e-2, rtol=2e-2)


def test_hooks_see_the_embedding_of_any_patches():
    model = make('naflex_perceiver_io_small', patch_size=4)
    batch = batch_of(images(model), (4, 4))
    expected = model(batch)
    model.stem.proj.register_forward_hook(lambda module, args, out: out + 1)
    other = batch_of(images(model), (8, 8), flat=False)
    assert not torch.allclose(model(batch), expected)
    seen = []
    model.stem.proj.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model(other)
    assert seen == [(4, other['patches'].shape[1], 256)]


@pytest.mark.parametrize('options', [dict(in_chans=1), dict(in_chans=4), dict(patch_size=8), dict(patch_size=(3, 5))])
def test_saved_weights_take_other_channels_and_patches(options, tmp_path):
    model = make('naflex_perceiver_io_small', patch_size=4)
    folder = hub.save(model, tmp_path / 'saved')
    other = timm.create_model(f'local-dir:{folder}', pretrained=True, **options).eval()
    if 'in_chans' in options:
        image = torch.randn(1, 1, 20, 24)
        expected = model(image.expand(-1, 3, -1, -1)) if other.in_chans == 1 else None
        found = other(image.expand(-1, other.in_chans, -1, -1))
    else:
        batch = batch_of(images(model), other.get_patch_size(), flat=False)
        expected, found = model(batch), other(batch)
    assert torch.isfinite(found).all()
    if expected is not None:
        assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_images_and_batches_are_exported():
    model = make('naflex_perceiver_io_small', patch_size=4)
    image, other = (torch.randn(1, 3, *size) for size in ((33, 50), (61, 17)))
    sizes = {2: torch.export.Dim('height', min=8, max=4096), 3: torch.export.Dim('width', min=8, max=4096)}
    program = torch.export.export(model, (image,), dynamic_shapes=(sizes,)).module()
    scripted = torch.jit.script(model)
    for given in (image, other):
        assert_close(program(given), model(given), atol=1e-5, rtol=1e-5)
        assert_close(scripted(given), model(given), atol=1e-5, rtol=1e-5)
    batch = {key: value for key, value in batch_of(images(model), (4, 4)).items() if key != 'seq_len'}
    assert_close(torch.export.export(model, (batch,)).module()(batch), model(batch))


CONV = dict(stem='conv')
REFUSED = {
    'keys': (dict(), lambda b: {'patches': b['patches']}, r"patches, patch_coord, patch_valid, got \['patches'\]"),
    'kind': (dict(), lambda b: list(b.values()), 'got list'),
    'type': (dict(), lambda b: {**b, 'patch_coord': None}, 'patch_coord must be a tensor, got NoneType'),
    'no patches': (dict(), lambda b: {k: v[:, :0] for k, v in b.items() if k != 'seq_len'}, 'nothing to attend to'),
    'no pixels': (
        dict(),
        lambda b: {**b, 'patches': b['patches'].view(4, -1, 4, 4, 3)[:, :, :0]},
        r'channels last, got',
    ),
    'boolean': (dict(), lambda b: {**b, 'patch_coord': b['patch_coord'] > 0}, 'patch_coord must be whole numbers'),
    'width': (
        dict(),
        lambda b: {**b, 'patches': b['patches'][..., 1:]},
        'Flat patches have 47 numbers, those of 4 × 4',
    ),
    'channels': (
        dict(),
        lambda b: {**b, 'patches': b['patches'].view(4, -1, 3, 4, 4)},
        r'height, width, 3\), channels last, got',
    ),
    'coordinates': (dict(), lambda b: {**b, 'patch_coord': b['patch_coord'][:, 1:]}, r'patch_coord must be whole'),
    'fractions': (dict(), lambda b: {**b, 'patch_coord': b['patch_coord'] / 2}, r'patch_coord must be whole numbers'),
    'validity': (dict(), lambda b: {**b, 'patch_valid': b['patch_valid'].long()}, 'patch_valid must be boolean'),
    'own size': (
        dict(stem='patches', patch_size=2),
        lambda b: {**b, 'patches': b['patches'].view(4, -1, 4, 4, 3)},
        r"Patches are \(4, 4\), stem='patches' takes only its own size \(2, 2\)",
    ),
    'convolution': (CONV, lambda b: b, "stem='conv' with pos_embed='fourier' takes no NaFlex batches"),
    'learned': (
        dict(stem='pixels', pos_embed='learned', patch_size=()),
        lambda b: b,
        "'learned' takes no NaFlex batches",
    ),
    'tokens': (
        dict(stem='tokens', pos_embed='none', img_size=9),
        lambda b: b,
        "stem='tokens' .* takes no NaFlex batches",
    ),
    'a grid of outputs': (dict(query_type='grid'), lambda b: b, "query_type='grid' needs images of one size"),
}


@pytest.mark.parametrize('options, change, message', REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(options, change, message):
    base = dict(stem='patch_embed', patch_size=4) if 'stem' not in options else {}
    name = 'perceiver_io_small'
    if options.get('query_type') == 'grid':
        base = dict(stem='patches', patch_size=4)
    model = make(name, **{**base, **options})
    batch = batch_of(images(make(name)), (4, 4))
    with pytest.raises((AssertionError, ValueError), match=message):
        model(change(batch))


def test_a_mask_beside_a_batch_is_refused():
    model = make('naflex_perceiver_small', patch_size=4)
    batch = batch_of(images(model), (4, 4))
    with pytest.raises(AssertionError, match='The mask of a NaFlex batch is its patch_valid'):
        model(batch, batch['patch_valid'])


class Digits(torch.utils.data.Dataset):
    """Real digits, each enlarged to a size of its own."""

    def __init__(self, folder):
        self.files = sorted(folder.rglob('*.png'))
        self.transform = None

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        image = Image.open(self.files[i]).convert('RGB').resize(tuple(int(n) for n in rng.integers(20, 49, 2)))
        return self.transform(image) if self.transform else image, int(self.files[i].parent.name)


@pytest.mark.slow
def test_timms_loader_trains_on_digits_of_mixed_sizes_and_patches(tmp_path):
    root = write_digits(tmp_path / 'digits', 0)
    torch.manual_seed(0)
    model = timm.create_model(
        'naflex_perceiver_small', num_classes=10, patch_size=4, stem_chs=32, num_bands=4, max_resolution=8,
        num_latents=32, latent_dim=64, num_blocks=2, block_depth=1, num_heads=4,
    )  # fmt: skip
    shared = dict(mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=0, device=torch.device('cpu'), persistent_workers=False)
    loader = create_naflex_loader(
        Digits(root / 'train'), patch_size_choices=[3, 4, 6], train_seq_lens=(36, 64, 100), batch_size=10,
        is_training=True, hflip=0.0, color_jitter=0.0, scale=(0.8, 1.0), seed=0, **shared,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=len(loader) + 1)
    shapes, losses = set(), []
    for batch, target in loader:
        shapes.add(tuple(batch['patches'].shape[1:4]))
        loss = torch.nn.functional.cross_entropy(model(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert len(shapes) >= 6, 'lengths and patches of several sizes'
    held = create_naflex_loader(
        Digits(root / 'validation'), patch_size=model.get_patch_size(), max_seq_len=100, batch_size=50, **shared
    )
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(batch).argmax(1) == target for batch, target in held]).float().mean().item()
    print(f'{len(losses)} steps, accuracy on held-out digits {right:.1%}')
    assert right > 0.6, f'{right:.3f} after one epoch, chance is 0.1'


@pytest.mark.parametrize('given', [4.0, True, 0, (4, 4, 4), '4'])
def test_patch_sizes_that_are_none_are_named(given):
    with pytest.raises(ValueError, match='patch_size must be one positive whole number for each of 2 axes'):
        make('naflex_perceiver_io_small', patch_size=given)
    with pytest.raises(ValueError, match='stem_chs must be at least 1, got 0'):
        make('naflex_perceiver_io_small', stem_chs=0)


def test_models_with_a_grid_of_outputs_have_no_patch_size_for_batches():
    with pytest.raises(ValueError, match="query_type='grid' needs images of one size"):
        make('perceiver_io_small', query_type='grid').get_patch_size()
