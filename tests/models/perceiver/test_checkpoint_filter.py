"""Perceiver checkpoints: where they come from, what they adapt to, and what is refused."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_extra  # noqa: F401
from tests.models.perceiver.test_transformers import SMALL, SMALL_CONFIG
from tests.reference.perceiver import CLASSIFIERS, transformers_classifier
from timm_extra import hub
from timm_extra.models.perceiver import checkpoint_filter_fn

REPOSITORIES = {
    'perceiver_io_base': 'deepmind/vision-perceiver-fourier',
    'perceiver_io_base_learned': 'deepmind/vision-perceiver-learned',
    'perceiver_io_base_conv': 'deepmind/vision-perceiver-conv',
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A small checkpoint of each kind in transformers' layout: path of the file and the model it is from."""
    folder, out = tmp_path_factory.mktemp('checkpoints'), {}
    for name in CLASSIFIERS:
        model = transformers_classifier(name, **SMALL_CONFIG)
        torch.save(model.state_dict(), folder / f'{name}.bin')
        out[name] = (folder / f'{name}.bin', model)
    return out


def load(name, file, classes=20, **kwargs):
    overlay = dict(file=str(file), num_classes=classes)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**SMALL, **kwargs}).eval()


@pytest.mark.parametrize('name', list(REPOSITORIES))
def test_pretrained_takes_deepminds_repositories_from_the_hub(name, files, tmp_path):
    """The Hub's cache on disk stands for the Hub: tests have no network."""
    file, model = files[name]
    repository = tmp_path / f'models--{REPOSITORIES[name].replace("/", "--")}'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text('0' * 40)
    snapshot = repository / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (snapshot / 'pytorch_model.bin').write_bytes(file.read_bytes())
    ours = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay=dict(num_classes=20),
        cache_dir=tmp_path,
        compat='hf',
        **SMALL,
    ).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), model(x).logits, rtol=0, atol=1e-4)
    assert ours.pretrained_cfg['license'] == 'cc-by-4.0'
    grey = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay=dict(num_classes=20),
        cache_dir=tmp_path,
        compat='hf',
        in_chans=1,
        **SMALL,
    ).eval()
    x = x[:, :1]
    torch.testing.assert_close(grey(x), ours(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)
    hub.save(grey, tmp_path / 'grey')
    again = timm.create_model(f'local-dir:{tmp_path}/grey', pretrained=True).eval()
    assert torch.equal(again(x), grey(x))


def test_preprocessing_is_as_published():
    for name in REPOSITORIES:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.tag == 'deepmind_in1k'
        assert timm.is_model_pretrained(name)
        data = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
        assert (data['input_size'], data['interpolation'], data['crop_pct']) == ((3, 224, 224), 'bicubic', 0.875)
        assert data['mean'] == timm.data.IMAGENET_DEFAULT_MEAN


def test_models_without_weights_say_so():
    with pytest.raises(RuntimeError, match='perceiver_base has no hosted weights'):
        timm.create_model('perceiver_base', pretrained=True)


@pytest.mark.parametrize('name', list(REPOSITORIES))
def test_a_new_head_on_old_weights(name, files):
    file, _ = files[name]
    ours, old = load(name, file, num_classes=10), load(name, file)
    x = torch.randn(1, 3, 224, 224)
    assert ours(x).shape == (1, 10)
    torch.testing.assert_close(ours.forward_head(ours.forward_features(x), pre_logits=True), pre_logits(old, x))


def pre_logits(model, x):
    return model.forward_head(model.forward_features(x), pre_logits=True)


def test_grey_images_on_weights_for_colour(files, tmp_path):
    file, _ = files['perceiver_io_base']
    with pytest.raises(ValueError, match=r'weights for colour images take grey ones with grey_chans=3'):
        load('perceiver_io_base', file, in_chans=1)
    ours, colour = load('perceiver_io_base', file, in_chans=1, grey_chans=3), load('perceiver_io_base', file)
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(ours(x), colour(x.expand(-1, 3, -1, -1)))
    assert ours.in_chans == 1
    hub.save(ours, tmp_path)
    torch.testing.assert_close(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), ours(x))


def test_a_grey_model_of_ones_own_stays_grey(tmp_path):
    model = timm.create_model('test_perceiver', in_chans=1)
    assert model.stem.out_chans == 1 + 34
    hub.save(model, tmp_path)
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).stem.out_chans == 1 + 34
    overlay = dict(file=str(tmp_path / 'model.safetensors'))
    again = timm.create_model('test_perceiver', in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay)
    assert again.stem.out_chans == 1 + 34


def test_other_channels_on_weights_for_colour_are_refused(files):
    file, _ = files['perceiver_io_base']
    with pytest.raises(
        ValueError, match=r'of another shape: cross_attends\.0\.attn\.norm_kv\.weight \(261,\) for \(262,\)'
    ):
        load('perceiver_io_base', file, in_chans=4)


@pytest.mark.parametrize('name', ['perceiver_io_base_learned', 'perceiver_io_base_conv'])
def test_convolutional_stems_adapt_to_channels_as_timms_do(name, files):
    file, _ = files[name]
    ours, colour = load(name, file, in_chans=1), load(name, file)
    x = torch.randn(1, 1, 224, 224)
    torch.testing.assert_close(ours(x), colour(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)


def test_learned_positions_are_resampled_to_another_size(files):
    file, _ = files['perceiver_io_base_learned']
    ours, square = load('perceiver_io_base_learned', file, img_size=(96, 64)), load('perceiver_io_base_learned', file)
    grid = square.stem.pos_embed.detach().view(1, 224, 224, 256).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(96, 64), mode='bicubic', antialias=True).flatten(2)[0].T
    torch.testing.assert_close(ours.stem.pos_embed.detach(), expected)
    assert ours(torch.randn(1, 3, 96, 64)).shape == (1, 20)


@pytest.mark.parametrize('name', list(REPOSITORIES))
@pytest.mark.parametrize('other', list(REPOSITORIES))
def test_a_checkpoint_of_another_variant_is_refused(name, other, files):
    if name == other:
        return
    with pytest.raises(ValueError, match="transformers' Perceiver IO checkpoint does not fit PerceiverIO"):
        load(name, files[other][0])


def test_a_checkpoint_of_another_size_is_refused(files):
    file, _ = files['perceiver_io_base']
    with pytest.raises(ValueError, match=r'of another shape: latents \(24, 64\) for \(16, 64\)'):
        load('perceiver_io_base', file, num_latents=16)
    with pytest.raises(ValueError, match=r'missing: blocks\.0\.2\.'):
        load('perceiver_io_base', file, block_depth=3)
    with pytest.raises(ValueError, match=r'unexpected: query, decoder\.'):
        given = transformers_classifier('perceiver_io_base', **SMALL_CONFIG).state_dict()
        checkpoint_filter_fn(given, timm.create_model('perceiver_small', **{**SMALL, 'num_cross_attends': 1}))


def test_the_two_modes_cannot_take_lucidrains_form(files):
    file, _ = files['perceiver_io_base']
    with pytest.raises(ValueError, match=r"needs a model with compat=None .* this one has compat='lucidrains'"):
        load('perceiver_io_base', file, compat='lucidrains')


def test_the_kernel_of_the_stem_is_as_stored(files):
    _, model = files['perceiver_io_base_conv']
    ours = timm.create_model('perceiver_io_base_conv', **SMALL)
    ours.load_state_dict(checkpoint_filter_fn(model.state_dict(), ours))
    stored = model.state_dict()['perceiver.input_preprocessor.convnet.conv.weight']
    assert torch.equal(ours.stem.conv.weight, stored)


def test_native_files_come_back_as_they_are(tmp_path):
    model = timm.create_model('test_perceiver_io')
    given = model.state_dict()
    assert all(torch.equal(v, given[k]) for k, v in checkpoint_filter_fn(given, model).items())
    torch.save({'state_dict': given, 'epoch': 3}, tmp_path / 'last.pth.tar')
    overlay = dict(file=str(tmp_path / 'last.pth.tar'))
    again = timm.create_model('test_perceiver_io', pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(v, given[k]) for k, v in again.state_dict().items())


def test_unknown_layouts_are_named():
    with pytest.raises(
        ValueError, match=r'not a Perceiver checkpoint: it begins with the keys conv1\.weight; known are'
    ):
        checkpoint_filter_fn({'conv1.weight': torch.zeros(1)}, timm.create_model('test_perceiver'))
