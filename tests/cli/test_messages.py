"""What the command says when it refuses: one line, which names options as the command has them."""

import argparse
import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import timm

import timm_extra
from timm_extra import cli, hub
from timm_extra.cli._messages import as_flags
from timm_extra.pretrain import PretrainConfig

PACKAGE = Path(timm_extra.__file__).parent
NAMES = {one.name for one in fields(PretrainConfig)}
# sentences in which the name of an option is a word of its own
WORDS = {'method': ('method {!r} has no', "of the method's own views"), 'noise': ('over which the noise grows',)}


@pytest.mark.parametrize(
    'message, shown',
    [
        ("`unreadable='skip'` leaves them out", '--unreadable skip leaves them out'),
        ('lower `batch_size`, or give `lr`', 'lower --batch-size, or give --lr'),
        ('`resume=True` goes on', '--resume goes on'),
        ('`sync_bn=False`, `sync_bn`', '--no-sync-bn, --sync-bn'),
        ('give `input_size=(C, H, W)`', 'give --input-size C H W'),
        ('`method` must be', 'METHOD must be'),
        ('`projection_size` was 8, `view1` was 1', 'projection_size was 8, view1 was 1'),
        ('a `b c` in /data/scale/noise.png', 'a `b c` in /data/scale/noise.png'),
    ],
)
def test_options_become_flags(message, shown):
    parser = cli.build_parser().parse_args(['pretrain', 'byol', '--model', 'm', '--output', 'o']).parser
    assert as_flags(message, parser) == shown


def messages():
    """Texts of all errors that a pretraining can raise: file, line, and the text with `{}` for what is filled in."""
    for folder in ('pretrain', 'training', 'images'):
        for file in (PACKAGE / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    for text in map(ast.unparse, node.exc.args):
                        yield f'{file.relative_to(PACKAGE)}:{node.lineno}', text


def test_errors_name_options_so_that_they_can_become_flags():
    """Between backticks; otherwise the command would speak Python."""
    found, seen = [], 0
    for where, text in messages():
        seen += '`' in text
        plain = re.sub(r'`[^`]*`|\{[^{}]*\}', '', text)  # without options in backticks, and what is filled in
        for name in set(re.findall(r'(?<![\w.=/])[a-z_0-9]+(?![\w(])', plain)) & NAMES:
            if not any(words.split('{!r}')[-1].strip() in plain for words in WORDS.get(name, ())):
                found.append(f'{where}: {name} in {text}')
    assert seen > 20 and not found, '\n'.join(found)


COMMAND = ['pretrain', 'byol', '--model', 'test_resnet', '--output', 'out', '--cpu', '-j', '0']
REFUSED = [
    ('--epochs 0', '--epochs must be positive, got 0'),
    ('--num-train-steps 0', '--num-train-steps must be positive, got 0'),
    ('--epochs 1 --num-train-steps 1', 'give --epochs or --num-train-steps, got 1 and 1'),
    ('-b 0', '--batch-size must be positive, got 0'),
    ('-b 25', 'the data set has 24 images, fewer than the 25 of a step: lower --batch-size'),
    ('--lr 0', '--lr must be positive, got 0.0'),
    ('--opt lion', "no learning rate is published for byol with 'lion': give --lr"),
    ('--weight-decay -1', '--weight-decay must be 0 or more, got -1.0'),
    ('--warmup-epochs -1', '--warmup-epochs must be 0 or more, got -1.0'),
    ('--grad-accum-steps 0', '--grad-accum-steps must be positive, got 0'),
    ('--clip-grad 0', '--clip-grad must be positive, got 0.0'),
    ('--task-args size=1', "size in --task-args: the task of 'byol' has projection_size,"),
    ('--task-args mean=1', 'mean cannot be in --task-args: give --mean instead'),
    ('--hidden-layer 99', '--hidden-layer 99 is out of range, ResNet has 10 children; its layers are conv1,'),
    ('--mean 0.1 0.2', '--mean has 2 values for 1 channels'),
    ('--std 0', '--std must be positive, got 0.0'),
    ('--scale 0.5 2', '--scale must not exceed 1, got (0.5, 2.0)'),
    (
        '--noise 1 --level 0',
        "method 'byol' has no --noise, --level; it has --hidden-layer, --input-size, --mean, --std",
    ),
    ('--noise-schedule linear', "method 'byol' has no --noise-schedule; it has --hidden-layer"),
    ('--iteration 1', "method 'byol' has no --iteration; it has --hidden-layer"),
    ('--probe-interval 0', '--probe-interval must be positive, got 0'),
    ('--checkpoint-interval 0', '--checkpoint-interval must be positive, got 0'),
    ('--checkpoint-hist 0', '--checkpoint-hist must be positive, got 0'),
    ('--log-interval 0', '--log-interval must be positive, got 0'),
    ('--workers -1', '--workers must be 0 or more, got -1'),
    ('--seed -1', '--seed must be 0 or more, got -1'),
]


@pytest.mark.parametrize('words, message', REFUSED, ids=[words for words, _ in REFUSED])
def test_pretrain_refuses_in_words_of_the_command(words, message, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ['--input-size', '1', '32', '32', '-b', '8', '--data-dir', str(pictures)]
    assert cli.main([*COMMAND, *size, *words.split()]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f'timm-extra: {message}') and printed.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('model, inputs', [('perceiver_audio', '1×61440'), ('perceiver_pointcloud', '2048×3')])
@pytest.mark.parametrize('verb', ['pretrain byol --output out --cpu', 'probe knn'])
def test_models_of_other_than_images_are_refused_before_they_are_built(
    verb, model, inputs, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('timm_extra.cli._arguments.create_model', lambda args: pytest.fail('it is built'))
    assert cli.main([*verb.split(), '--model', model, '--data-dir', str(pictures)]) == 1
    assert re.fullmatch(
        f'timm-extra: this Perceiver takes no images, its inputs are {inputs}\n', capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_such_a_model_is_refused(pictures, tmp_path, capsys):
    tiny = dict(num_latents=8, latent_dim=16, num_heads=2, num_blocks=1, block_depth=1)
    hub.save(timm.create_model('perceiver_audio', **tiny), tmp_path / 'audio')
    for verb in (['pretrain', 'byol', '--output', str(tmp_path / 'out'), '--cpu'], ['probe', 'knn']):
        assert cli.main([*verb, '--model', f'local-dir:{tmp_path}/audio', '--data-dir', str(pictures)]) == 1
        assert capsys.readouterr().err == 'timm-extra: this Perceiver takes no images, its inputs are 1×61440\n'
    assert not (tmp_path / 'out').exists()


def test_messages_that_name_nothing_are_shown_as_they_are(capsys):
    parser = argparse.ArgumentParser()
    assert as_flags('no folder at photos', parser) == 'no folder at photos'
