"""GLOM with `compat='lucidrains'` against glom-pytorch, and its checkpoints."""

import pytest
import timm
import torch
from glom_pytorch import Glom
from timm.layers import resample_abs_pos_embed
from timm.models import load_state_dict

from timm_extra.models.glom import checkpoint_filter_fn

SIZES = dict(dim=24, levels=4, image_size=28, patch_size=7)


def pair(num_classes=5, pretrained_cfg_overlay=None, **options):
    """glom-pytorch's model and ours with its weights."""
    theirs = Glom(**SIZES, **options).eval()
    with torch.no_grad():
        for net in (theirs.bottom_up.net, theirs.top_down.net):
            net[3].weight.mul_(6.0)  # or the image vanishes on its way up, and nothing could go wrong there
    overlay = pretrained_cfg_overlay or dict(state_dict=theirs.state_dict(), num_classes=num_classes)
    with pytest.warns(UserWarning, match='glom-pytorch has no classifier'):
        ours = create(overlay, num_classes=num_classes, **options)
    return theirs, ours.eval()


def create(overlay, **kwargs):
    sizes = dict(embed_dim=24, num_levels=4, img_size=28, patch_size=7, compat='lucidrains')
    return timm.create_model('test_glom', pretrained=True, pretrained_cfg_overlay=overlay, **{**sizes, **kwargs})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('consensus_self', [False, True])
@pytest.mark.parametrize('radius', [0, 1, 2])
def test_states_are_glom_pytorchs(consensus_self, radius):
    theirs, ours = pair(consensus_self=consensus_self, local_consensus_radius=radius)
    x = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(x, return_all=True)
        assert (expected[-1, 0] - expected[-1, 1]).abs().amax((0, 2)).min() > 0.05, 'images matter at every level'
        torch.testing.assert_close(ours.forward_state(x, return_all=True), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.forward_state(x), theirs(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.forward_state(x, iters=3), theirs(x, iters=3), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.forward_level(x, iters=7), expected[7, :, :, -1], atol=1e-5, rtol=0)
        next_frame = torch.randn(3, 3, 28, 28)
        going_on = [f(next_frame, iters=5, **s) for f, s in
                    ((ours.forward_state, dict(state=expected[-1])), (theirs, dict(levels=expected[-1])))]  # fmt: skip
        torch.testing.assert_close(*going_on, atol=1e-5, rtol=0)


def test_gradients_are_glom_pytorchs():
    theirs, ours = pair()
    theirs, ours = theirs.double(), ours.double()
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    weight = torch.randn(24, dtype=torch.float64)
    (theirs(x, return_all=True)[7, :, :, -1] * weight).sum().backward()
    (ours.forward_level(x, iters=7) * weight).sum().backward()
    torch.testing.assert_close(ours.init_levels.grad, theirs.init_levels.grad)
    torch.testing.assert_close(ours.pos_embed.grad[0], theirs.pos_emb.weight.grad)
    patches = ours.patch_embed.proj.weight.grad.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(patches, theirs.image_to_tokens[1].weight.grad)
    torch.testing.assert_close(ours.patch_embed.proj.bias.grad, theirs.image_to_tokens[1].bias.grad)
    bottom_up = [ours.patch_up, *(level.bottom_up for level in ours.levels[1:])]
    for nets, their in ((bottom_up, theirs.bottom_up), ([lv.top_down for lv in ours.levels[:-1]], theirs.top_down)):
        for ours_is, theirs_is in (('fc1', 1), ('fc2', 3)):
            layers = [getattr(net, ours_is) for net in nets]
            conv = their.net[theirs_is]
            torch.testing.assert_close(torch.cat([m.weight.grad for m in layers]), conv.weight.grad.squeeze(-1))
            torch.testing.assert_close(torch.cat([m.bias.grad for m in layers]), conv.bias.grad)


def test_a_file_loads(tmp_path):
    theirs = Glom(**SIZES)
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'glom.pt')
    with pytest.warns(UserWarning, match='glom-pytorch has no classifier'):
        model = create(dict(file=str(tmp_path / 'glom.pt')), num_classes=0)
    x = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(model.forward_state(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize('img_size', [(42, 21), (14, 56)])
def test_positions_are_resampled_and_grey_images_taken(img_size):
    """Also on a grid of another shape with as many columns."""
    theirs = Glom(**SIZES)
    grid = img_size[0] // 7, img_size[1] // 7
    with pytest.warns(UserWarning, match='glom-pytorch has no classifier'):
        model = create(dict(state_dict=theirs.state_dict()), img_size=img_size, in_chans=1, num_classes=7)
    expected = resample_abs_pos_embed(theirs.pos_emb.weight[None], grid, (4, 4), num_prefix_tokens=0)
    torch.testing.assert_close(model.pos_embed, expected)
    weight = theirs.image_to_tokens[1].weight.view(24, 7, 7, 3).sum(-1)
    torch.testing.assert_close(model.patch_embed.proj.weight[:, 0], weight)
    assert model(torch.randn(1, 1, *img_size)).shape == (1, 7)


def test_native_checkpoints_stay_as_they_are(tmp_path):
    _, ours = pair()
    state_dict = ours.state_dict()
    converted = checkpoint_filter_fn(dict(state_dict), ours)
    assert converted.keys() == state_dict.keys()
    assert all(converted[k] is state_dict[k] for k in state_dict)
    torch.save(state_dict, tmp_path / 'native.pt')
    assert load_state_dict(str(tmp_path / 'native.pt')).keys() == state_dict.keys()
    again = create(dict(file=str(tmp_path / 'native.pt'), num_classes=5), num_classes=5)
    x = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(again.eval()(x), ours(x))


@pytest.mark.filterwarnings('ignore:glom-pytorch has no classifier')
@pytest.mark.parametrize(
    'given, kwargs, message',
    [
        ({}, dict(compat=None), "create it with compat='lucidrains'"),
        ({}, dict(learned_mean=True), 'learned_mean=False'),
        ({}, dict(patch_size=14), '147 numbers per patch, which are not 3 of 14×14'),
        ({}, dict(patch_size=14, in_chans=12), 'numbers per patch'),
        ({}, dict(local_consensus_radius=1), 'no limit of consensus, the model has local_consensus_radius=1'),
        (dict(local_consensus_radius=1), {}, 'another radius than local_consensus_radius=0'),
        (dict(local_consensus_radius=1), dict(local_consensus_radius=2), 'another radius than'),
        ({}, dict(num_levels=3), 'of another shape: '),
        ({}, dict(embed_dim=32), 'of another shape: '),
    ],
)
def test_what_does_not_fit_is_refused(given, kwargs, message):
    theirs = Glom(**SIZES, **given)
    with pytest.raises(ValueError, match=message):
        create(dict(state_dict=theirs.state_dict()), **kwargs)


def test_damaged_files_are_refused():
    state_dict = Glom(**SIZES).state_dict()
    with pytest.raises(ValueError, match=r'missing: pos_emb\.weight; unexpected: junk'):
        create(dict(state_dict={'junk': torch.zeros(1), **{k: v for k, v in state_dict.items() if 'pos_' not in k}}))


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match='no known layout of GLOM'):
        create(dict(state_dict={'a': torch.zeros(1)}))
    with pytest.raises(ValueError, match='15 positions, no square'):
        native = timm.create_model('test_glom', img_size=(42, 70), embed_dim=24).state_dict()
        create(dict(state_dict=native), compat=None)
