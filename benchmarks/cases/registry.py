"""All benchmark cases. A new family is a module here with a list `CASES`, and a line below."""

from typing import List

from ..harness import Case
from . import ceit, glom, operations, perceiver, pretraining, selfsupervised, start

CASES: List[Case] = [
    *start.CASES,
    *ceit.CASES,
    *perceiver.CASES,
    *glom.CASES,
    *selfsupervised.CASES,
    *pretraining.CASES,
    *operations.CASES,
]
