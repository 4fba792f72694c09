"""`python -m timm_extra X …`: the command where X is one of its verbs, else a script with the models registered."""

import sys
from typing import List

from .cli import VERBS, main


def arguments(argv: List[str]) -> List[str]:
    """Command line of `timm-extra` for that of `python -m timm_extra`: scripts are for its verb `run`."""
    script = argv and not argv[0].startswith('-') and argv[0] not in VERBS
    return ['run', *argv] if script else argv


if __name__ == '__main__':
    sys.exit(main(arguments(sys.argv[1:])))
