"""Options stand once: checked, saved, loaded, at the command line, in the docs. As a script this writes the docs."""

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from torch import nn

from timm_extra.cli._arguments import option_arguments, options_from
from timm_extra.pretrain import METHODS, PretrainConfig
from timm_extra.pretrain.config import TASK_OPTIONS
from timm_extra.training.option import default_of, flags_of, markdown_table

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'pretraining.md'
TABLE = re.compile(r'(<!-- options -->\n).*?(<!-- /options -->)', re.DOTALL)
# a value other than the default for every option, and the words that give it at the command line
OTHERS = dict(
    method=('simsiam', 'simsiam'),
    epochs=(3, '--epochs 3'),
    num_train_steps=(None, ''),
    batch_size=(8, '-b 8'),
    preset=('small-images', '--preset small-images'),
    lr=(0.5, '--lr 0.5'),
    opt=('adamw', '--opt adamw'),
    weight_decay=(0.05, '--weight-decay 0.05'),
    warmup_epochs=(0.5, '--warmup-epochs 0.5'),
    grad_accum_steps=(2, '--grad-accum-steps 2'),
    clip_grad=(1.0, '--clip-grad 1'),
    task_args=(dict(projection_size=8, head_norm='group'), '--task-args projection_size=8 head_norm=group'),
    hidden_layer=(-2, '--hidden-layer -2'),
    input_size=((1, 32, 32), '--input-size 1 32 32'),
    mean=((0.4,), '--mean 0.4'),
    std=((0.3, 0.2), '--std 0.3 0.2'),
    scale=((0.2, 1.0), '--scale 0.2 1'),
    noise=(None, ''),
    noise_schedule=(None, ''),
    iteration=(None, ''),
    level=(None, ''),
    views_on_device=(True, '--views-on-device'),
    unreadable=('skip', '--unreadable skip'),
    probes=(('linear', 'knn'), '--probes linear knn'),
    probe_interval=(2, '--probe-interval 2'),
    checkpoint_interval=(10, '--checkpoint-interval 10'),
    checkpoint_hist=(3, '--checkpoint-hist 3'),
    resume=(True, '--resume'),
    log_interval=(1, '--log-interval 1'),
    log_with=('trackio', '--log-with trackio'),
    mixed_precision=('bf16', '--mixed-precision bf16'),
    channels_last=(True, '--channels-last'),
    sync_bn=(False, '--no-sync-bn'),
    workers=(0, '--workers 0'),
    seed=(7, '--seed 7'),
    cpu=(True, '--cpu'),
)
DENOISING = dict(
    method=('glom', 'glom'),
    num_train_steps=(5, '--num-train-steps 5'),
    noise=((0.5, 1.5), '--noise 0.5 1.5'),
    noise_schedule=('cosine', '--noise-schedule cosine'),
    iteration=(5, '--iteration 5'),
    level=(-2, '--level -2'),
)
ALL = (OTHERS, DENOISING)


def config_of(values):
    return PretrainConfig(**{name: value for name, (value, _) in values.items()})


def parser_of(options):
    parser = argparse.ArgumentParser()
    option_arguments(parser, options)
    return parser


def test_every_option_is_tested():
    assert OTHERS.keys() == {one.name for one in fields(PretrainConfig)}
    for one in fields(PretrainConfig):
        assert any(values.get(one.name, (one.default,))[0] != one.default for values in ALL), one.name


@pytest.mark.parametrize('values', ALL, ids=['others', 'denoising'])
def test_the_command_sets_every_option(values):
    words = ' '.join(words for _, words in values.values()).split()
    assert options_from(parser_of(PretrainConfig).parse_args(words), PretrainConfig) == config_of(values)


@pytest.mark.parametrize('method', METHODS)
def test_the_command_has_the_defaults_of_python(method):
    args = parser_of(PretrainConfig).parse_args([method, '--epochs', '1'])
    assert options_from(args, PretrainConfig) == PretrainConfig(method=method, epochs=1)


def test_options_of_tasks_are_left_out_where_they_are_not_given():
    """None is the default of all: any other value would reach tasks that do not take it."""
    assert TASK_OPTIONS
    assert [one.name for one in fields(PretrainConfig) if one.name in TASK_OPTIONS and one.default is not None] == []


def test_the_help_shows_every_option_with_its_default():
    shown = ' '.join(parser_of(PretrainConfig).format_help().split())
    for one in fields(PretrainConfig):
        assert one.metadata['help'] in shown, one.name
        assert any(flag in shown for flag in flags_of(one)) or one.name == 'method'
        if default_of(one) and one.default is not False and one.name != 'method':
            assert f'{one.metadata["help"]} Default: {default_of(one)}.' in shown


def test_the_table_in_the_docs_is_that_of_the_options():
    found = TABLE.search(PAGE.read_text())
    assert found[0] == found[1] + markdown_table(PretrainConfig) + found[2], f'out of date: python {__file__}'


@pytest.mark.parametrize('values', ALL, ids=['others', 'denoising'])
def test_saved_options_come_back(values, tmp_path):
    config, file = config_of(values), tmp_path / 'args.yaml'
    config.save(file, model='resnet50', images=64)
    assert PretrainConfig.load(file) == config
    held = yaml.safe_load(file.read_text())
    assert (held['model'], held['images'], held['method']) == ('resnet50', 64, config.method)
    assert [f.name for f in tmp_path.iterdir()] == ['args.yaml']


def test_a_function_among_the_options_is_saved_by_name_and_not_loaded(tmp_path):
    config = PretrainConfig(epochs=1, task_args=dict(decay=config_of))
    config.save(tmp_path / 'args.yaml', model='resnet50', images=64)
    assert '!object' in (tmp_path / 'args.yaml').read_text() and 'config_of' in (tmp_path / 'args.yaml').read_text()
    with pytest.raises(ValueError, match=r'args\.yaml cannot be read: .*!object'):
        PretrainConfig.load(tmp_path / 'args.yaml')


@pytest.mark.parametrize('content, message', [('- 1', 'list'), ('epochs: 1\nkeep: 2', 'keep'), ('a: [', 'cannot be')])
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / 'args.yaml').write_text(content)
    with pytest.raises(ValueError, match=message):
        PretrainConfig.load(tmp_path / 'args.yaml')


def test_lists_are_tuples_and_one_noise_is_a_number():
    config = PretrainConfig(method='glom', epochs=1, input_size=[1, 28, 28], noise=[0.5])
    assert (config.input_size, config.noise) == ((1, 28, 28), 0.5)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(method='dino'), "`method` must be one of byol, simsiam, glom, pixpro, got 'dino'"),
        (dict(unreadable='ignore'), "`unreadable` must be one of raise, skip, got 'ignore'"),
        (dict(probes=('knn', 'svm')), "`probes` must be one of knn, linear, attentive, got 'svm'"),
        (dict(mixed_precision='fp8'), "`mixed_precision` must be one of no, fp16, bf16, got 'fp8'"),
        (dict(method='glom', noise_schedule='square'), "`noise_schedule` must be one of linear, cosine, got 'square'"),
        (dict(num_train_steps=1), 'give `epochs` or `num_train_steps`, got 1 and 1'),
        (dict(epochs=None), 'give `epochs` or `num_train_steps`, got None and None'),
        (dict(epochs=0), '`epochs` must be positive, got 0'),
        (dict(probe_interval=0), '`probe_interval` must be positive, got 0'),
        (dict(log_interval=-1), '`log_interval` must be positive, got -1'),
        (dict(grad_accum_steps=0), '`grad_accum_steps` must be positive, got 0'),
        (dict(lr=0.0), '`lr` must be positive, got 0.0'),
        (dict(lr=float('nan')), '`lr` must be positive, got nan'),
        (dict(std=(0.2, 0.0)), '`std` must be positive, got 0.0'),
        (dict(seed=-1), '`seed` must be 0 or more, got -1'),
        (dict(workers=-1), '`workers` must be 0 or more, got -1'),
        (dict(task_args=dict(view1=nn.Identity())), 'view1 cannot be in `task_args`: give `view1` instead'),
        (dict(noise=1.0, level=0), "method 'byol' has no `noise`, `level`; it has `hidden_layer`, `input_size`"),
        (
            dict(method='glom', hidden_layer=-1),
            "method 'glom' has no `hidden_layer`; it has `noise`, `iteration`, `level`",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(PretrainConfig(epochs=1), **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match='keep'):
        PretrainConfig(epochs=1, keep=2)
    message = "projecton_size in `task_args`: the task of 'byol' has projection_size, projection_hidden_size, decay,"
    with pytest.raises(TypeError, match=message):
        PretrainConfig(epochs=1, task_args=dict(projecton_size=8))
    args = parser_of(PretrainConfig).parse_args(['byol', '--epochs', '1', '--task-args', 'projecton_size=8'])
    with pytest.raises(ValueError, match=message):
        options_from(args, PretrainConfig)


if __name__ == '__main__':
    PAGE.write_text(TABLE.sub(lambda m: m[1] + markdown_table(PretrainConfig) + m[2], PAGE.read_text()))
