"""`python -m timm_extra script.py …`: any script with the models registered, under torchrun too."""

import sys

from .run import run_script

USAGE = """usage: python -m timm_extra SCRIPT [ARGUMENT ...]

Run a Python script with the models of timm_extra registered. The command with verbs is timm-extra.

  python -m timm_extra train.py --model ceit_small --data-dir imagenet
  torchrun --nproc_per_node=8 -m timm_extra train.py --model ceit_small --data-dir imagenet"""


def main() -> None:
    """Entry point."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    run_script(sys.argv[1], sys.argv[2:])


if __name__ == '__main__':
    main()
