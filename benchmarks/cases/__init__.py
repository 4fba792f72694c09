"""All benchmark cases. A new family is a module here with a list `CASES`, and a line below."""

from typing import List

from ..case import Case
from . import ceit, glom, operations, perceiver, pretraining, start

CASES: List[Case] = [
    *start.CASES,
    *ceit.CASES,
    *perceiver.CASES,
    *glom.CASES,
    *pretraining.CASES,
    *operations.CASES,
]
