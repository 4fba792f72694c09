"""The `timm-extra` command: a table of verbs, each a thin call of one library function."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Callable, List, Optional, Tuple, Type


@dataclass(frozen=True)
class Verb:
    """One word of the command.

    Attributes:
        name: The word.
        help: One line.
        examples: Command lines for `--help`.
        add_arguments: Declares the arguments on a parser.
        run: Carries it out and returns the exit status.
        refusals: Errors that mean bad input and are told in a line; others show their traceback.
    """

    name: str
    help: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    refusals: Tuple[Type[Exception], ...] = (ValueError, FileExistsError, FileNotFoundError, ModuleNotFoundError)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', help='wildcard filter of names (default: all)')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _models(args: argparse.Namespace) -> int:
    from .info import list_names, model_info

    infos = [model_info(name) for name in list_names(args.pattern)]
    if not infos:
        print(f'timm-extra: no model matches {args.pattern!r}', file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([asdict(info) for info in infos], indent=1))
        return 0
    print(f'{"model":<26}{"params M":>10}{"GMACs":>9}  {"input":<13}weights')
    for info in infos:
        size = '×'.join(map(str, info.input_size))
        weights = 'hosted' if info.weights else 'from a file'
        print(f'{info.name:<26}{info.params / 1e6:>10.2f}{info.gmacs:>9.2f}  {size:<13}{weights}')
    return 0


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('script', help='Python script, as train.py of timm')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='its command line')


def _run(args: argparse.Namespace) -> int:
    from .run import run_script

    run_script(args.script, args.args)
    return 0


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--output', default='output/demo', help='folder for model, pictures and log (%(default)s)')
    parser.add_argument('--model', default='ceit', help='ceit, perceiver or perceiver-permuted (%(default)s)')
    parser.add_argument('--epochs', type=int, help="passes over the training images (default: the model's own number)")
    parser.add_argument('--batch-size', type=int, default=64, help='images per step (%(default)s)')
    parser.add_argument('--lr', type=float, help="peak learning rate (default: the model's own)")
    parser.add_argument('--seed', type=int, default=0, help='seed of split, initialisation and order (%(default)s)')


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    run_demo(args.output, model=args.model, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    return 0


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    from timm.utils import ParseKwargs

    parser.add_argument('--model', required=True, help='name of a timm model, or local-dir:FOLDER, hf-hub:OWNER/NAME')
    parser.add_argument('--pretrained', action='store_true', help='start from its published weights')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='NAME=VALUE')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help="default: the model's")
    parser.add_argument('--mean', type=float, nargs='+', help="per channel (default: the model's)")
    parser.add_argument('--std', type=float, nargs='+', help="per channel (default: the model's)")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data-dir', help='folder of images, or of the data set')
    parser.add_argument('--dataset', default='', help="timm's name of a data set, as torch/cifar10 (default: a folder)")
    parser.add_argument('--dataset-download', action='store_true', help='download a torch/ data set')
    parser.add_argument('-j', '--workers', type=int, default=4, help='processes that read images (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=256, help='images per process (%(default)s)')


def _create_model(args: argparse.Namespace):
    import timm
    import torch

    torch.manual_seed(getattr(args, 'seed', 0))
    kwargs = dict(args.model_kwargs)
    if args.input_size:
        kwargs.setdefault('in_chans', args.input_size[0])
    named = args.model.split(':')[0] in ('local-dir', 'hf-hub')
    if not named and not timm.is_model(args.model):
        raise ValueError(f'timm has no model {args.model!r}')
    options = dict(pretrained=args.pretrained or named, num_classes=0)
    if args.input_size and 'img_size' not in kwargs:
        try:
            return timm.create_model(args.model, **options, **kwargs, img_size=tuple(args.input_size[1:]))
        except TypeError:  # a model of any size
            pass
    return timm.create_model(args.model, **options, **kwargs)


def _labelled_splits(args: argparse.Namespace, channels: int):
    """Training and test images with the same numbers for the same classes."""
    train = _create_dataset(args, 'train', channels)
    classes = getattr(getattr(train, 'reader', None), 'class_to_idx', None)
    test = _create_dataset(args, 'validation', channels, **({} if args.dataset else dict(class_map=classes)))
    if not args.dataset and train.filename(0, absolute=True) == test.filename(0, absolute=True):
        raise ValueError(f'{args.data_dir} has no folders train and validation: a probe needs both')
    return train, test


def _create_dataset(args: argparse.Namespace, split: str, channels: int, **options):
    from timm.data import create_dataset

    if not args.dataset and not args.data_dir:
        raise ValueError('give --data-dir, a folder of images, or --dataset')
    if args.dataset_download:
        options['download'] = True
    modes = {1: 'L', 3: 'RGB'}
    return create_dataset(
        args.dataset, root=args.data_dir, split=split, input_img_mode=modes.get(channels, ''), **options
    )


def _name_or_index(word: str):
    return int(word) if word.lstrip('-').isdigit() else word


DENOISING = ('noise', 'noise_schedule', 'iteration', 'level')


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('method', choices=('byol', 'simsiam', 'glom'))
    _model_arguments(parser)
    _data_arguments(parser)
    parser.add_argument('--output', required=True, help='folder for the model, checkpoints and log')
    parser.add_argument('--split', default='train', help='part of the data set (%(default)s)')
    parser.add_argument('--epochs', type=int, help='passes over the images (default: 100)')
    parser.add_argument('--num-train-steps', type=int, help='steps of the optimizer instead')
    parser.add_argument('--opt', help="timm's name of an optimizer (default: the recipe's)")
    parser.add_argument('--lr', type=float, help="peak learning rate (default: the recipe's, by images per step)")
    parser.add_argument('--weight-decay', type=float, help="(default: the recipe's)")
    parser.add_argument('--warmup-epochs', type=float, help="(default: the recipe's)")
    parser.add_argument('--grad-accum-steps', type=int, default=1, help='forward passes per step (%(default)s)')
    parser.add_argument('--clip-grad', type=float, help='largest norm of the gradient')
    parser.add_argument(
        '--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'), help="area of crops (default: paper's)"
    )
    parser.add_argument(
        '--hidden-layer', type=_name_or_index, help="layer whose output is the embedding (default: timm's pre_logits)"
    )
    glom = parser.add_argument_group('glom: denoising')
    glom.add_argument(
        '--noise',
        type=float,
        nargs='+',
        metavar='STD',
        help='in units of normalised pixels; between two for every image (default: 1)',
    )
    glom.add_argument('--noise-schedule', choices=('linear', 'cosine'), help='let the noise grow (default: constant)')
    glom.add_argument('--iteration', type=int, help="that images are told from (default: after half the model's)")
    glom.add_argument('--level', type=int, help='that images are told from, negative from the top (default: the top)')
    parser.add_argument('--views-on-device', action='store_true', help='augment on the GPU, not where images are read')
    parser.add_argument('--skip-unreadable', action='store_true', help='leave out images that cannot be read')
    parser.add_argument(
        '--probe',
        nargs='+',
        choices=('knn', 'linear'),
        help="accuracies on the data set's labelled splits while training",
    )
    parser.add_argument('--probe-every', type=int, default=1, help='epochs between probes (%(default)s)')
    parser.add_argument('--checkpoint-every', type=int, help='steps between checkpoints (default: an epoch)')
    parser.add_argument('--keep', type=int, default=2, help='checkpoints to keep, beside the best (%(default)s)')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint in --output')
    parser.add_argument('--log-every', type=int, default=10, help='steps between rows of log.csv (%(default)s)')
    parser.add_argument('--tensorboard', action='store_true', help='write events, too')
    parser.add_argument('--mixed-precision', choices=('no', 'fp16', 'bf16'), help="(default: accelerate's)")
    parser.add_argument('--channels-last', action='store_true', help='memory format, often faster for convolutions')
    parser.add_argument('--seed', type=int, default=0, help='of weights, order and augmentation (%(default)s)')
    parser.add_argument('--cpu', action='store_true', help='stay on the CPU')


def _pretrain(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from .pretrain import pretrain
    from .views import RECIPES, RandomView, view_config

    task_args = {name: getattr(args, name) for name in DENOISING if getattr(args, name) is not None}
    if task_args and args.method != 'glom':
        options = ', '.join(f'--{name.replace("_", "-")}' for name in task_args)
        raise ValueError(f'{args.method} takes no {options}, which glom does')
    if len(task_args.get('noise', ())) == 1:
        (task_args['noise'],) = task_args['noise']
    model = _create_model(args)
    config = view_config(model, args.input_size, args.mean, args.std)
    recipes = RECIPES[args.method]
    if args.scale:
        recipes = tuple(replace(recipe, scale=tuple(args.scale)) for recipe in recipes)
    views = {f'view{number}': RandomView(recipe, **config) for number, recipe in enumerate(recipes, 1)}
    channels = config['input_size'][0]
    probe = _labelled_splits(args, channels) if args.probe else None
    done = pretrain(
        model,
        _create_dataset(args, args.split, channels),
        args.output,
        method=args.method,
        epochs=100 if args.epochs is None and args.num_train_steps is None else args.epochs,
        num_train_steps=args.num_train_steps,
        batch_size=args.batch_size,
        learning_rate=args.lr,
        optimizer=args.opt,
        weight_decay=args.weight_decay,
        warmup_epochs=args.warmup_epochs,
        grad_accum_steps=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        task_args=task_args,
        hidden_layer=args.hidden_layer,
        **config,
        **views,
        views_on_device=args.views_on_device,
        unreadable='skip' if args.skip_unreadable else 'raise',
        probe=probe,
        probes=args.probe or (),
        probe_every=args.probe_every,
        checkpoint_every=args.checkpoint_every,
        keep=args.keep,
        resume=args.resume,
        log_every=args.log_every,
        tensorboard=args.tensorboard,
        mixed_precision=args.mixed_precision,
        channels_last=args.channels_last,
        workers=args.workers,
        seed=args.seed,
        cpu=args.cpu,
    )
    accuracies = ''.join(f'; {probe} accuracy {found:.2f} %' for probe, found in done.accuracies.items())
    skipped = f'; {done.skipped} unreadable images left out' if done.skipped else ''
    print(f'{done.steps} steps done{accuracies}{skipped}')
    print(f"timm.create_model('local-dir:{done.folder}/model', pretrained=True)")
    return 0


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('probe', choices=('knn', 'linear'))
    _model_arguments(parser)
    _data_arguments(parser)
    parser.add_argument('--device', default='cpu', help='(%(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _probe(args: argparse.Namespace) -> int:
    from .probe import accuracies
    from .tasks import Encoder
    from .views import PlainView, view_config

    model = _create_model(args).to(args.device)
    view = PlainView(**view_config(model, args.input_size, args.mean, args.std))
    train, test = _labelled_splits(args, view.input_size[0])
    options = dict(view=view, batch_size=args.batch_size, device=args.device, workers=args.workers)
    top1 = accuracies([args.probe], Encoder(model), train, test, **options)[args.probe]
    if args.json:
        print(json.dumps(dict(model=args.model, probe=args.probe, top1=top1, train=len(train), test=len(test))))
    else:
        print(f'{args.model}: {args.probe} accuracy {top1:.2f} % on {len(test)} images, learned from {len(train)}')
    return 0


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('picture', choices=('islands',), help="islands: how GLOM's columns come to agree")
    parser.add_argument('image', help='image file')
    _model_arguments(parser)
    parser.add_argument('--iters', type=int, help="iterations (default: the model's)")
    parser.add_argument('--threshold', type=float, default=0.9, help='cosine that joins neighbours (%(default)s)')
    parser.add_argument('--mask', metavar='FILE', help='image of the same size whose values are numbers of segments')
    parser.add_argument('--output', default='islands.png', help='PNG to write (%(default)s)')


def _plot(args: argparse.Namespace) -> int:
    from .plot import plot_islands

    found = plot_islands(
        _create_model(args).eval(),
        args.image,
        args.output,
        iters=args.iters,
        threshold=args.threshold,
        mask=args.mask,
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
    )
    for level in reversed(found):
        agreement = '' if level.rand_index is None else f', adjusted Rand index {level.rand_index:.3f}'
        plural = '' if level.islands == 1 else 's'
        print(f'level {level.level}: {level.islands} island{plural}, neighbour cosine {level.cosine:.3f}{agreement}')
    print(args.output)
    return 0


VERBS = (
    Verb(
        'models', 'list the models', "timm-extra models\ntimm-extra models 'ceit_*' --json", _models_arguments, _models
    ),
    Verb(
        'run',
        'run a script with the models registered',
        'timm-extra run train.py --model ceit_small --data-dir imagenet',
        _run_arguments,
        _run,
        refusals=(),  # errors are the script's own
    ),
    Verb(
        'demo',
        'train a small model on 5,000 handwritten digits, save, reload and draw it',
        'timm-extra demo\ntimm-extra demo --model perceiver --output output/perceiver',
        _demo_arguments,
        _demo,
    ),
    Verb(
        'pretrain',
        'train any timm model without labels',
        'timm-extra pretrain byol --model resnet50 --data-dir photos --epochs 100 --output output/byol\n'
        'timm-extra pretrain simsiam --model ceit_tiny --data-dir photos --output output/simsiam --opt adamw\n'
        'timm-extra pretrain glom --model glom_tiny --data-dir photos --output output/glom --noise 0.5 1.5\n'
        'accelerate launch -m timm_extra.cli pretrain byol --model resnet50 --data-dir photos --output output/byol',
        _pretrain_arguments,
        _pretrain,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
    Verb(
        'probe',
        'accuracy of a simple classifier on frozen features',
        'timm-extra probe knn --model local-dir:output/byol/model --data-dir labelled',
        _probe_arguments,
        _probe,
    ),
    Verb(
        'plot',
        'draw what a model makes of an image',
        'timm-extra plot islands photo.jpg --model local-dir:output/glom/model\n'
        'timm-extra plot islands photo.jpg --model glom_tiny --iters 20 --mask segments.png --output islands.png',
        _plot_arguments,
        _plot,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
)


def _parser() -> argparse.ArgumentParser:
    from ._version import __version__

    parser = argparse.ArgumentParser(
        prog='timm-extra', description='CeiT and friends for timm. `timm-extra VERB --help` shows examples.'
    )
    parser.add_argument('--version', action='version', version=f'timm-extra {__version__}')
    verbs = parser.add_subparsers(title='verbs', metavar='VERB', required=True)
    for verb in VERBS:
        examples = '\n'.join(f'  {line}' for line in verb.examples.splitlines())
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            epilog=f'examples:\n{examples}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(verb=verb)
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point.

    Args:
        argv: Command line without the program's name; that of the process when None.

    Returns:
        Exit status: 0 done, 1 refused with a message, 2 misused.
    """
    args = _parser().parse_args(argv)
    try:
        return args.verb.run(args)
    except args.verb.refusals as e:
        print(f'timm-extra: {e}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
