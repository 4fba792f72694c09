"""GLOM: what its states are, and the promises of timm's interface."""

import pytest
import timm
import torch
from timm.layers import Mlp
from torch import nn

import timm_extra  # noqa: F401
from timm_extra import hub

SMALL = dict(img_size=28, patch_size=7, embed_dim=16, num_levels=4, num_classes=5)


def small_model(**kwargs) -> nn.Module:
    return timm.create_model('test_glom', **{**SMALL, **kwargs})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plain_states(model, x, iters):
    """The definition, all levels of all images in every iteration: list of (B, N, L, D)."""
    patch_input = model.patch_up(model.patch_embed(x))
    L = model.num_levels
    state = model.levels[0].norm(model.init_levels).expand(*patch_input.shape[:2], -1, -1)
    states = [state]
    for _ in range(iters):
        new = []
        for i, level in enumerate(model.levels):
            cosine = torch.cosine_similarity(state[:, :, None, i], state[:, None, :, i], dim=-1)  # (B, N, N)
            length = state[:, :, None, i].square().mean(-1).sqrt()
            scores = cosine * length * (1.0 if level.consensus.beta is None else level.consensus.beta)
            if not model.consensus_self:
                scores[:, range(scores.shape[1]), range(scores.shape[1])] = -5e-4
            parts = [
                state[:, :, i],
                patch_input if i == 0 else level.bottom_up(state[:, :, i - 1]),
                scores.softmax(-1) @ state[:, :, i],
            ]
            if i + 1 < L:
                parts.append(level.top_down(state[:, :, i + 1] + model.pos_embed))
            weights = torch.ones(len(parts)) if level.weights is None else level.weights
            mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / len(parts)
            new.append(level.norm(mean))
        state = torch.stack(new, 2)
        states.append(state)
    return states


@pytest.mark.parametrize('kwargs', [{}, dict(consensus_self=True), dict(learned_mean=True), dict(compat='lucidrains')])
def test_states_are_what_the_definition_says(kwargs):
    model = small_model(**kwargs).double()
    if kwargs.get('learned_mean'):
        for level in model.levels:
            nn.init.uniform_(level.weights, 0.5, 1.5)
    x = torch.randn(3, 3, 28, 28, dtype=torch.float64)
    expected = torch.stack(plain_states(model, x, 8))
    torch.testing.assert_close(model.forward_state(x, return_all=True), expected)
    torch.testing.assert_close(model.forward_state(x), expected[-1])
    for level in range(4):
        for iters in range(level + 1, 9):
            torch.testing.assert_close(model.forward_level(x, level, iters), expected[iters, :, :, level])


def test_leaving_out_states_changes_no_gradient():
    x = torch.randn(3, 3, 28, 28, dtype=torch.float64)
    grads = []
    for one in (lambda m: m.forward_level(x, -1), lambda m: plain_states(m, x, 8)[-1][:, :, -1]):
        torch.manual_seed(1)
        model = small_model(num_classes=0).double()
        one(model).square().mul(torch.arange(16)).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if 'norm' not in n})
    assert all(g is not None for g in grads[0].values())
    torch.testing.assert_close(*grads)


def test_what_cannot_matter_is_not_computed(monkeypatch):
    """Counted by calls and images of bottom-up nets: L = 4, 8 iterations, read from the top."""
    model = small_model().eval()
    seen, forward = [], Mlp.forward
    nets = [model.patch_up, *(level.bottom_up for level in model.levels[1:])]

    def counted(self, x):
        if self in nets:
            seen.append(x.shape[0])
        return forward(self, x)

    monkeypatch.setattr(Mlp, 'forward', counted)
    x = torch.randn(3, 3, 28, 28)
    model(x)
    assert len(seen) == 1 + 8 * 3 - (1 + 2), 'patches once; the last iterations without the lower levels'
    assert seen.count(1) == 1 + 2 + 3, 'level l is the same for all images for l iterations'
    seen.clear()
    model.forward_state(x)
    assert len(seen) == 1 + 8 * 3
    seen.clear()
    model.forward_level(x, 0, 2)
    assert len(seen) == 1 + 1, 'level 1 after an iteration is the last that reaches level 0'


def test_hooks_on_levels_see_every_iteration_without_gradients():
    model, seen = small_model().eval(), []
    for i, level in enumerate(model.levels):
        level.register_forward_hook(lambda module, args, out, i=i: seen.append((i, out)))
    x = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        model(x)
        states = model.forward_state(x)
    assert [i for i, _ in seen] == 2 * model.iters * list(range(4))
    for i, state in seen[-4:]:
        torch.testing.assert_close(state, states[:, :, i])


def test_the_final_tokens_are_the_output_of_a_module():
    """What tools that draw maps of a layer ask for; its maps differ between images."""
    for kwargs in ({}, dict(concat_levels=True)):
        model, seen = small_model(**kwargs).eval(), []
        model.norm.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        x = torch.randn(2, 3, 28, 28)
        torch.testing.assert_close(seen.append(model.forward_features(x)) or seen[1], seen[0])
        assert not torch.equal(seen[0][0], seen[0][1])
        model(x)
        assert torch.equal(seen[2], seen[0])


def test_random_draws_differ_between_images_from_the_first_iteration():
    model = small_model(proj_drop_rate=0.5).train()
    x = torch.randn(1, 3, 28, 28).expand(2, -1, -1, -1)
    states = model.forward_state(x, iters=1)
    assert not torch.equal(states[0, :, 1:], states[1, :, 1:])
    model.eval()
    states = model.forward_state(x, iters=1)
    assert torch.equal(states[0], states[1])


@pytest.mark.parametrize('name', ['glom_base', 'glom_small', 'glom_tiny', 'test_glom'])
def test_states_keep_their_length(name):
    """Root mean square of every level in every one of 24 iterations; without normalisation they vanish."""

    def lengths(compat):
        model = timm.create_model(name, img_size=56, compat=compat).eval()
        with torch.no_grad():
            states = model.forward_state(torch.randn(2, 3, 56, 56), iters=24, return_all=True)
        return states.square().mean((1, 2, 4)).sqrt()  # (25, L)

    kept = lengths(None)
    assert kept.min() > 0.9 and kept.max() < 1.1
    assert lengths('lucidrains')[-1, -1] < 0.1


def test_states_keep_their_length_while_learning():
    model = small_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(16, 3, 28, 28), torch.randint(5, (16,))
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5, 'it learns'
    rms = model.forward_state(x, iters=24, return_all=True).square().mean((1, 2, 4)).sqrt()
    assert rms.min() > 0.9 and rms.max() < 1.1


@pytest.mark.parametrize('compat', [None, 'lucidrains'])
def test_going_on_equals_going_through(compat):
    model = small_model(compat=compat).eval()
    x = torch.randn(2, 3, 28, 28)
    half = model.forward_state(x, iters=5)
    torch.testing.assert_close(model.forward_state(x, state=half, iters=3), model.forward_state(x, iters=8))
    all_of_them = model.forward_state(x, state=half, iters=3, return_all=True)
    assert torch.equal(all_of_them[0], half)
    torch.testing.assert_close(all_of_them[1:], model.forward_state(x, iters=8, return_all=True)[6:])


def test_local_consensus_sees_its_neighbours_alone():
    model = small_model(local_consensus_radius=1, num_levels=2, img_size=(21, 35)).eval()
    state = torch.randn(1, 15, 2, 16)
    changed = state.clone()
    changed[:, 0, 1] += 1.0  # top level, corner (0, 0)
    x = torch.zeros(1, 3, 21, 35)
    after = [model.forward_state(x, state=s, iters=1)[0, :, 1] for s in (state, changed)]
    moved = (after[0] - after[1]).abs().amax(-1).view(3, 5) > 0
    assert moved.nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]


def test_features_by_level():
    model = small_model(img_size=(21, 35)).eval()
    x = torch.randn(2, 3, 21, 35)
    state = model.forward_state(x)
    features, maps = model.forward_intermediates(x, indices=[0, 2])
    torch.testing.assert_close(features, state[:, :, 3])
    for level, found in zip((0, 2), maps, strict=True):
        torch.testing.assert_close(found, state[:, :, level].transpose(1, 2).reshape(2, 16, 3, 5))
    alone = model.forward_intermediates(x, indices=[1], output_fmt='NLC', intermediates_only=True)
    torch.testing.assert_close(alone[0], state[:, :, 1])
    negative = model.forward_intermediates(x, indices=[-1, 0], intermediates_only=True)
    assert torch.equal(negative[0], maps[0]) and len(negative) == 2, 'in the order of levels, as timm has it'


def test_features_only():
    torch.manual_seed(1)
    backbone = timm.create_model('test_glom', features_only=True, out_indices=(0, 2)).eval()
    torch.manual_seed(1)
    model = timm.create_model('test_glom').eval()
    x = torch.randn(2, 3, 56, 56)
    state = model.forward_state(x)
    for level, found in zip((0, 2), backbone(x), strict=True):
        torch.testing.assert_close(found, state[:, :, level].transpose(1, 2).reshape(2, 32, 4, 4))
    assert backbone.feature_info.reduction() == [14, 14]
    for wrong in ('hook', 'fx'):
        with pytest.raises(ValueError, match=f"feature_cls='getter', got '{wrong}'"):
            timm.create_model('test_glom', features_only=True, feature_cls=wrong)


def test_classifying_by_all_levels():
    model = small_model(concat_levels=True).eval()
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(model.forward_features(x), model.forward_state(x).flatten(2))
    assert model.num_features == model.head_hidden_size == model.head.in_features == 4 * 16
    features, maps = model.forward_intermediates(x, indices=[3])
    torch.testing.assert_close(features, model.forward_features(x))
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), model.forward_state(x)[:, :, 3])
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(learned_mean=True),
        dict(local_consensus_radius=1.5, consensus_self=True),
        dict(in_chans=5, global_pool='max'),
        dict(img_size=(21, 35), act_layer='relu'),
        dict(compat='lucidrains'),
        dict(drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1),
    ],
)
def test_every_switch_trains(kwargs):
    model = small_model(**kwargs)
    model(torch.randn(2, model.in_chans, *model.patch_embed.img_size)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_other_sizes():
    model = small_model(dynamic_img_size=True).eval()
    assert model(torch.randn(1, 3, 42, 21)).shape == (1, 5)
    fixed = small_model().eval()
    fixed.load_state_dict(model.state_dict())
    fixed.set_input_size((42, 21))
    x = torch.randn(1, 3, 42, 21)
    torch.testing.assert_close(fixed(x), model(x))
    assert fixed.patch_embed.img_size == (42, 21)


def test_checkpointing_keeps_gradients_and_forgets_activations():
    model = small_model().train()
    x = torch.randn(2, 3, 28, 28)
    grads, kept = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        numbers = 0

        def pack(t):
            nonlocal numbers
            numbers += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        kept.append(numbers)
    torch.testing.assert_close(*grads)
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize('kwargs', [{}, dict(compat='lucidrains'), dict(learned_mean=True, local_consensus_radius=1)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(kwargs, dtype):
    """States are within a few roundings of float32, by the root mean square, where images differ by far more."""
    model = small_model(**kwargs).eval()
    if kwargs.get('compat'):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(10.0 if name.endswith('fc2.weight') else 1.0)  # or the image vanishes on its way up
    x = torch.randn(2, 3, 28, 28)

    def rms(states):
        return states.detach().float().square().mean((0, 1, 2, 4)).sqrt()  # (L,)

    expected = model.forward_state(x, return_all=True)
    allowed = 4 * torch.finfo(dtype).eps * rms(expected)
    assert (rms(expected[-1:, :1] - expected[-1:, 1:]) > 1.5 * allowed).all()
    with torch.autocast('cpu', dtype):
        assert (rms(model.forward_state(x, return_all=True) - expected) < allowed).all()
    half = model.to(dtype).forward_state(x.to(dtype), return_all=True)
    assert half.dtype == dtype and (rms(half - expected) < allowed).all()
    assert model.forward_state(x.to(dtype), state=torch.zeros_like(half[0])).isfinite().all()
    assert model(x.to(dtype)).dtype == dtype


def test_states_of_other_precision_are_taken():
    model = small_model().eval()
    x = torch.randn(1, 3, 28, 28)
    state = model.forward_state(x, iters=3)
    expected = model.forward_state(x, state, iters=2)
    torch.testing.assert_close(model.forward_state(x, state.double(), iters=2), expected)
    torch.testing.assert_close(model.forward_state(x, state.half(), iters=2), expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize('kwargs', [{}, dict(local_consensus_radius=1, dynamic_img_size=True, concat_levels=True)])
def test_compiles_exports_and_scripts(kwargs):
    model = small_model(num_levels=2, iters=3, **kwargs).eval()
    x = torch.randn(2, 3, 28, 28)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), expected)
    if model.dynamic_img_size:
        other = torch.randn(1, 3, 42, 21)
        torch.testing.assert_close(scripted(other), model(other))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)


def test_layers_of_parameters():
    model = small_model(learned_mean=True)
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups['pos_embed'] == groups['init_levels'] == groups['patch_embed.proj.weight'] == 0
    assert groups['patch_up.fc1.weight'] == 0
    assert [groups[f'levels.{i}.weights'] for i in range(4)] == [1, 2, 3, 4]
    assert [groups['fc_norm.weight'], groups['head.weight']] == [4, 5]
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()}


def test_an_image_reaches_the_top_of_a_new_model():
    """Between images of noise the top level differs, by the root mean square, by a seventh of its length and more."""
    for name, least in (('glom_base', 0.1), ('glom_tiny', 0.1)):
        model = timm.create_model(name, img_size=112).eval()
        with torch.no_grad():
            top = model.forward_level(torch.randn(4, 3, 112, 112))
        assert (top - top.mean(0)).square().mean().sqrt() > least


def test_iterations_set_later_are_checked():
    model = small_model().eval()
    model.iters = 2
    with pytest.raises(ValueError, match='after iters 2 level 3 has not seen the image'):
        model(torch.randn(3, 3, 28, 28))


def test_draws_of_dropout_in_evaluation_differ_between_images():
    model = small_model(proj_drop_rate=0.5).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    states = model.forward_state(torch.randn(1, 3, 28, 28).expand(2, -1, -1, -1), iters=1)
    assert not torch.equal(states[0, :, 1:], states[1, :, 1:])


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(compat='lucidrains', iters=5),
        dict(learned_mean=True, iters=9),
        dict(dynamic_img_size=True, concat_levels=True),
        dict(local_consensus_radius=1.5, consensus_self=True, global_pool='max'),
    ],
)
def test_saved_models_come_back(kwargs, tmp_path):
    model = small_model(**kwargs)
    model.set_input_size((21, 42))
    model.reset_classifier(3)
    hub.save(model.eval(), tmp_path / 'glom')
    again = timm.create_model(f'local-dir:{tmp_path}/glom', pretrained=True).eval()
    x = torch.randn(2, 3, 21, 42)
    assert torch.equal(again(x), model(x))
    assert again.iters == model.iters


def test_meta_device_and_init():
    with torch.device('meta'):
        model = small_model(learned_mean=True)
    model.to_empty(device='cpu')
    for p in model.parameters():
        nn.init.constant_(p, float('nan'))
    model.init_weights()
    assert model.levels[0].weights.tolist() == [1.0] * 4
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(img_size=30), 'multiple of patch_size 7, got 30×30'),
        (dict(patch_size=0), 'patch_size must be a positive integer, got 0'),
        (dict(num_levels=1), 'num_levels must be a whole number of at least 2, got 1'),
        (dict(iters=0), 'iters must be a whole number of at least 1, got 0'),
        (dict(iters=3), 'after iters 3 level 3 has not seen the image: 4 are needed'),
        (dict(num_levels=3.0), 'num_levels must be a whole number of at least 2, got 3.0'),
        (dict(local_consensus_radius=float('nan')), 'local_consensus_radius must not be negative, got nan'),
        (dict(local_consensus_radius=-1), 'local_consensus_radius must not be negative, got -1'),
        (dict(compat='hinton'), "compat must be None or 'lucidrains', got 'hinton'"),
        (dict(global_pool='token'), "global_pool must be '', 'avg', 'avgmax' or 'max', got 'token'"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_model(**kwargs)


def test_unknown_arguments():
    with pytest.raises(TypeError, match='levels'):
        small_model(levels=3)


def test_inputs_that_do_not_fit():
    model = small_model()
    x = torch.randn(2, 3, 28, 28)
    with pytest.raises(ValueError, match=r'state must have shape \[2, 16, 4, 16\], got \[1, 16, 4, 16\]'):
        model.forward_state(x, state=torch.randn(1, 16, 4, 16))
    for iters in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f'iters must be a whole number of at least 1, got {iters}'):
            model.forward_state(x, iters=iters)
    for level in (4, -5):
        with pytest.raises(ValueError, match=f'levels are 0 to 3, got {level}'):
            model.forward_level(x, level)
    with pytest.raises(ValueError, match='after iters 2 level 3 has not seen the image: 4 are needed'):
        model.forward_level(x, iters=2)
    with pytest.raises(AssertionError, match=r"Input height \(42\) doesn't match model \(28\)"):
        model(torch.randn(1, 3, 42, 28))
    with pytest.raises(AssertionError, match=r'Input width \(30\) should be divisible by patch size \(7\)'):
        small_model(dynamic_img_size=True)(torch.randn(1, 3, 28, 30))
    with pytest.raises(RuntimeError, match='to have 3 channels, but got 1'):
        model(torch.randn(1, 1, 28, 28))
