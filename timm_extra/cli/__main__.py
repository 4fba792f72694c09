"""`python -m timm_extra.cli`: the `timm-extra` command."""

import sys

from . import main

if __name__ == '__main__':
    sys.exit(main())
