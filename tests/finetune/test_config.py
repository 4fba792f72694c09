"""Options of fine-tuning: checked, at the command line, in the docs. As a script this writes the docs."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from timm_extra.cli._arguments import option_arguments, options_from
from timm_extra.finetune import FinetuneConfig
from timm_extra.training.option import markdown_table

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'finetuning.md'
TABLE = re.compile(r'(<!-- options -->\n).*?(<!-- /options -->)', re.DOTALL)
# a value other than the default for every option, and the words that give it at the command line
OTHERS = dict(
    epochs=(3, '--epochs 3'),
    batch_size=(8, '-b 8'),
    opt=('sgd', '--opt sgd'),
    lr=(0.5, '--lr 0.5'),
    weight_decay=(0.1, '--weight-decay 0.1'),
    layer_decay=(0.7, '--layer-decay 0.7'),
    warmup_epochs=(0.5, '--warmup-epochs 0.5'),
    clip_grad=(1.0, '--clip-grad 1'),
    smoothing=(0.0, '--smoothing 0'),
    mixup=(0.8, '--mixup 0.8'),
    cutmix=(1.0, '--cutmix 1'),
    model_ema=(True, '--model-ema'),
    model_ema_decay=(0.9, '--model-ema-decay 0.9'),
    scale=((0.5, 1.0), '--scale 0.5 1'),
    ratio=((0.9, 1.1), '--ratio 0.9 1.1'),
    hflip=(0.0, '--hflip 0'),
    vflip=(0.5, '--vflip 0.5'),
    color_jitter=(0.0, '--color-jitter 0'),
    aa=('rand-m9-mstd0.5-inc1', '--aa rand-m9-mstd0.5-inc1'),
    reprob=(0.25, '--reprob 0.25'),
    holdout=(0.1, '--holdout 0.1'),
    unreadable=('skip', '--unreadable skip'),
    checkpoint_interval=(10, '--checkpoint-interval 10'),
    checkpoint_hist=(3, '--checkpoint-hist 3'),
    resume=(True, '--resume'),
    log_interval=(1, '--log-interval 1'),
    log_with=('trackio', '--log-with trackio'),
    mixed_precision=('bf16', '--mixed-precision bf16'),
    device=('cpu', '--device cpu'),
    workers=(0, '--workers 0'),
    seed=(7, '--seed 7'),
)


def test_the_command_line_gives_every_option():
    assert OTHERS.keys() == {one.name for one in fields(FinetuneConfig)}
    parser = argparse.ArgumentParser()
    option_arguments(parser, FinetuneConfig)
    assert options_from(parser.parse_args([]), FinetuneConfig) == FinetuneConfig()
    words = ' '.join(words for _, words in OTHERS.values()).split()
    given = FinetuneConfig(**{name: value for name, (value, _) in OTHERS.items()})
    assert options_from(parser.parse_args(words), FinetuneConfig) == given


@pytest.mark.parametrize(
    'wrong',
    [
        dict(epochs=0),
        dict(batch_size=-1),
        dict(lr=0.0),
        dict(lr=float('nan')),
        dict(clip_grad=0.0),
        dict(checkpoint_interval=0),
        dict(smoothing=1.5),
        dict(hflip=-0.1),
        dict(weight_decay=-1.0),
        dict(mixup=float('nan')),
        dict(workers=-1),
        dict(scale=(0.5, 0.2)),
        dict(scale=(0.5, 1.2)),
        dict(ratio=(0.0, 1.0)),
        dict(holdout=1.0),
        dict(layer_decay=0.0),
        dict(warmup_epochs=10),
        dict(seed=-1),
        dict(unreadable='ignore'),
        dict(mixup=0.2, batch_size=7),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong):
    name, value = list(wrong.items())[-1]
    shown = re.escape(str(value[0] if isinstance(value, tuple) else value))
    with pytest.raises(ValueError, match=rf'(?s)\b{name}\b.*got .*{shown}'):
        FinetuneConfig(**wrong)


def test_the_table_in_the_docs_is_that_of_the_fields():
    page = PAGE.read_text()
    assert page == spliced(page)


def spliced(page):
    return TABLE.sub(lambda found: found[1] + markdown_table(FinetuneConfig) + found[2], page)


if __name__ == '__main__':
    PAGE.write_text(spliced(PAGE.read_text()))
