"""`timm-extra probe`: accuracy of a simple classifier on frozen features."""

import argparse
import json

from ._arguments import create_image_model, data_arguments, device_argument, labelled_splits, model_arguments
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('probe', choices=('knn', 'linear', 'attentive'), help='classifier on the features')
    model_arguments(parser)
    data_arguments(parser)
    device_argument(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra._device import find_device
    from timm_extra.images import input_config
    from timm_extra.pretrain.probe import accuracies
    from timm_extra.pretrain.tasks import Encoder
    from timm_extra.pretrain.views import PlainView

    device = find_device(args.device)
    model = create_image_model(args).to(device)
    view = PlainView(**input_config(model, args.input_size, args.mean, args.std))
    train, test = labelled_splits(args, view.input_size[0])
    options = dict(view=view, batch_size=args.batch_size, device=device, workers=args.workers)
    top1 = accuracies([args.probe], Encoder(model), train, test, **options)[args.probe]
    if args.json:
        print(json.dumps(dict(model=args.model, probe=args.probe, top1=top1, train=len(train), test=len(test))))
    else:
        print(f'{args.model}: {args.probe} accuracy {top1:.2f} % on {len(test)} images, learned from {len(train)}')
    return 0


VERB = Verb(
    'probe',
    'measure a simple classifier on frozen features, with folders train/CLASS and validation/CLASS',
    'timm-extra probe knn --model local-dir:output/byol/model --data-dir labelled',
    add_arguments,
    run,
)
