"""`timm-extra doctor`: the installation and the paths of the operations."""

import argparse
import json
import sys
from dataclasses import asdict

from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--no-hub', action='store_true', help='do not check the login to the Hub')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra.doctor import doctor

    health = doctor(hub=not args.no_hub)
    if args.json:
        print(json.dumps(asdict(health), indent=1))
        return 1 if health.problems else 0
    print(f'{health.platform}, {health.threads} threads')
    for title, versions in (('installed', health.versions), ('optional', health.optional)):
        print(f'{title}:', ', '.join(f'{name} {version or "missing"}' for name, version in versions.items()))
    print(f'triton: {health.triton}')
    for gpu in health.gpus:
        print(f'GPU: {gpu.name}, {gpu.gibibytes} GiB, capability {gpu.capability}')
    if not health.gpus:
        print('GPU: none')
    for name, value in health.switches.items():
        print(f'{name}={value}')
    for path in health.paths:
        print(path)
    print(f'{health.linear} (on the CPU, after timm_extra.accelerate)')
    print(f'Hub: {health.hub}')
    for problem in health.problems:
        print(f'timm-extra: {problem}', file=sys.stderr)
    return 1 if health.problems else 0


VERB = Verb(
    'doctor',
    'show versions, GPUs, which kernels are used and why, and the login to the Hub',
    'timm-extra doctor\ntimm-extra doctor --no-hub --json',
    add_arguments,
    run,
)
