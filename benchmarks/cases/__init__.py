"""All benchmark cases. A new family is a module here with a list `CASES`, and a line below."""

from typing import List

from ..case import Case
from . import ceit, flow, glom, linear, operations, perceiver, pretraining, start

MODULES = (start, ceit, perceiver, flow, glom, linear, pretraining, operations)
CASES: List[Case] = [case for module in MODULES for case in module.CASES]
