"""Where the class token of a CeiT looks, drawn beside the layers that it reads."""

import pytest
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from timm.data import ImageNetInfo

from timm_extra import plot
from timm_extra.plot import sheets

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3)


@pytest.mark.parametrize('block', [0, 2, -1])
@pytest.mark.parametrize('kwargs', [{}, dict(use_lca=False), dict(dynamic_img_size=True), dict(cls_bypass=True)])
def test_class_token_attention_is_what_the_block_uses(block, kwargs):
    model = timm.create_model('test_ceit', **SMALL, **kwargs).eval()
    height, width = (24, 48) if kwargs.get('dynamic_img_size') else (32, 32)
    x = torch.randn(2, 3, height, width)
    tokens = []
    hook = model.blocks[block].attn.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    expected = model(x)
    hook.remove()
    attn = model.blocks[block].attn
    q, k, _ = attn.qkv(tokens[0]).reshape(2, -1, 3, 3, 8).unbind(2)
    scores = torch.einsum('bhd,bnhd->bhn', q[:, 0], k) / 8**0.5
    weights = plot.class_token_attention(model, x, block)
    assert weights.shape == (2, 3, height // 8, width // 8)
    torch.testing.assert_close(weights.flatten(-2), scores.softmax(-1)[..., 1:])
    torch.testing.assert_close(model(x), expected)
    assert not attn.attn_drop._forward_pre_hooks


def test_blocks_that_do_not_exist_and_training_are_refused():
    model = timm.create_model('test_ceit', **SMALL)
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match='eval'):
        plot.class_token_attention(model, x)
    for block in (5, -6):
        with pytest.raises(ValueError, match=f'^blocks are 0 to 4, got {block}$'):
            plot.class_token_attention(model.eval(), x, block)


def test_no_latents_are_refused():
    model = timm.create_model('test_perceiver').eval()
    with pytest.raises(ValueError, match='latents must name at least one, got none'):
        plot.latent_attention(model, torch.randn(1, 3, 16, 16), [])


@pytest.fixture
def drawn(monkeypatch):
    """Figures, in the order in which they are written."""
    figures = []
    monkeypatch.setattr(sheets, 'write_figure', lambda figure, path: figures.append(figure) or path)
    return figures


def cut(figure):
    """Texts of a figure that reach beyond it."""
    FigureCanvasAgg(figure).draw()
    frame = figure.bbox
    texts = [figure._supxlabel] if figure._supxlabel else []
    for axis in figure.axes:
        texts.append(axis.title)
        if axis.axison:
            texts += [axis.xaxis.label, axis.yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    return [text for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > frame.x1 or b.y1 > frame.y1]


@pytest.fixture(scope='module')
def longest():
    return max(ImageNetInfo('imagenet-1k').label_descriptions(), key=len)


@pytest.mark.parametrize('lca', [True, False])
def test_the_picture_of_a_ceit_has_the_image_the_map_and_the_layers(lca, drawn, longest, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_ceit', **SMALL, num_classes=2, use_lca=lca).eval()
    model.pretrained_cfg['label_names'] = [longest, longest]
    Image.effect_noise((40, 50), 90).convert('RGB').save(tmp_path / 'image.png')
    said = plot.plot_attention(model, tmp_path / 'image.png', tmp_path / 'out.png', block=1)
    assert said.startswith('class-token attention of block 1 over 4×4 patches') and ('5 layers' in said) == lca
    (figure,) = drawn
    shapes = [image.get_array().shape for axis in figure.axes for image in axis.get_images()]
    assert shapes == [(32, 32, 3), (32, 32), (4, 4), *([(3, 5)] if lca else [])]
    assert figure.axes[0].title.get_text().replace('\n', ' ').startswith(longest)
    assert cut(figure) == []


@pytest.mark.parametrize('columns', [1, 3])
def test_labels_of_prediction_sheets_are_uncut(columns, drawn, longest, tmp_path):
    logits, attention = torch.randn(columns, 2), torch.rand(columns, 3, 5).softmax(-1)
    images, labels = torch.rand(columns, 3, 8, 8), (1 - logits.argmax(1)).tolist()  # wrong: two labels are written
    plot.prediction_sheet(images, labels, logits, attention, tmp_path / 'x.png', class_names=[longest] * 2)
    assert cut(drawn[0]) == []
