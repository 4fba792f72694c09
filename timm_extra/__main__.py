"""`python -m timm_extra X …`: the command where X is one of its verbs, else a script with the models registered."""

import os
import sys
from typing import List

from ._nearest import nearest
from .cli import VERBS, main


def arguments(argv: List[str]) -> List[str]:
    """Command line of `timm-extra` for that of `python -m timm_extra`: scripts are for its verb `run`."""
    script = argv and not argv[0].startswith('-') and argv[0] not in VERBS
    if script and not os.path.exists(argv[0]) and nearest(argv[0], VERBS):  # a verb with a typing error
        return argv
    return ['run', *argv] if script else argv


if __name__ == '__main__':
    sys.exit(main(arguments(sys.argv[1:])))
