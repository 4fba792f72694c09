"""`timm-extra pretrain`: training without labels."""

import argparse
from dataclasses import replace

from ._arguments import create_dataset, create_model, data_arguments, labelled_splits, model_arguments
from ._verb import Verb


def _name_or_index(word: str):
    return int(word) if word.lstrip('-').isdigit() else word


DENOISING = ('noise', 'noise_schedule', 'iteration', 'level')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('method', choices=('byol', 'simsiam', 'glom'))
    model_arguments(parser)
    data_arguments(parser)
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


def run(args: argparse.Namespace) -> int:
    from timm_extra.images import input_config
    from timm_extra.pretrain import pretrain
    from timm_extra.pretrain.views import RECIPES, RandomView

    task_args = {name: getattr(args, name) for name in DENOISING if getattr(args, name) is not None}
    if task_args and args.method != 'glom':
        options = ', '.join(f'--{name.replace("_", "-")}' for name in task_args)
        raise ValueError(f'{args.method} takes no {options}, which glom does')
    if len(task_args.get('noise', ())) == 1:
        (task_args['noise'],) = task_args['noise']
    model = create_model(args)
    config = input_config(model, args.input_size, args.mean, args.std)
    recipes = RECIPES[args.method]
    if args.scale:
        recipes = tuple(replace(recipe, scale=tuple(args.scale)) for recipe in recipes)
    views = {f'view{number}': RandomView(recipe, **config) for number, recipe in enumerate(recipes, 1)}
    channels = config['input_size'][0]
    probe = labelled_splits(args, channels) if args.probe else None
    done = pretrain(
        model,
        create_dataset(args, args.split, channels),
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


VERB = Verb(
    'pretrain',
    'train any timm model without labels',
    'timm-extra pretrain byol --model resnet50 --data-dir photos --epochs 100 --output output/byol\n'
    'timm-extra pretrain simsiam --model ceit_tiny --data-dir photos --output output/simsiam --opt adamw\n'
    'timm-extra pretrain glom --model glom_tiny --data-dir photos --output output/glom --noise 0.5 1.5\n'
    'accelerate launch -m timm_extra pretrain byol --model resnet50 --data-dir photos --output output/byol',
    add_arguments,
    run,
    refusals=(ValueError, OSError, ModuleNotFoundError),
)
