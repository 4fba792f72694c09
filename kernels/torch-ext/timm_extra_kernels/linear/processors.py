"""Which library multiplies float32 matrices faster, by processor. Measured: docs/processors.md has the figures."""

import functools
import platform
import re
from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

import torch


class Products(NamedTuple):
    """Which products of a linear layer go through oneDNN; the others go through MKL.

    Attributes:
        output: That of the forward pass.
        input_gradient: The gradient of the input.
        weight_gradient: The gradient of the weight.
    """

    output: bool = False
    input_gradient: bool = False
    weight_gradient: bool = False

    def __str__(self) -> str:
        words = ('the output', 'the gradient of the input', 'the gradient of the weight')
        mkl, onednn = ([word for word, here in zip(words, self) if here == which] for which in (False, True))
        named = (f'{library} for {" and ".join(w)}' for library, w in (('oneDNN', onednn), ('MKL', mkl)) if w)
        return ', '.join(named)


@dataclass(frozen=True)
class Choice:
    """From how many multiply-adds on a product goes through oneDNN; where None, none does.

    Attributes:
        processor: In words.
        output: The product of the forward pass.
        input_gradient: The gradient of the input.
        narrowing: The gradient of a weight with no more outputs than inputs.
        widening: The gradient of a weight with more outputs than inputs, which comes out transposed.
        features: Fewest features in and out.
    """

    processor: str
    output: Optional[int] = None
    input_gradient: Optional[int] = None
    narrowing: Optional[int] = None
    widening: Optional[int] = None
    features: int = 16

    def products(self, rows: int, inputs: int, outputs: int) -> Products:
        """What holds for a layer of so many features, called on so many rows."""
        if min(inputs, outputs) < self.features:
            return Products()
        least = self.output, self.input_gradient, self.widening if outputs > inputs else self.narrowing
        return Products(*(one is not None and rows * inputs * outputs >= one for one in least))


# By vendor and family, all with AVX-512. MKL computes on AMD's processors as if they had AVX2 alone. Gradients of
# widening weights gain on Zen 5, as far as single products of 2**28 multiply-adds and more were measured, not on Zen 4.
CHOICES = {
    ('AuthenticAMD', 25): Choice('AMD Zen 4', output=2**24, input_gradient=2**23, narrowing=2**28),
    ('AuthenticAMD', 26): Choice('AMD Zen 5', output=2**24, input_gradient=2**23, narrowing=2**28, widening=2**28),
}


@functools.lru_cache(maxsize=None)
def choice() -> 'Choice | str':
    """What holds for this processor and this PyTorch; why it is PyTorch's own choice where there is nothing."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return 'this PyTorch has not both MKL and oneDNN'
    vendor, family = identified(_cpuinfo(), platform.processor())
    capability = torch.backends.cpu.get_cpu_capability()
    found = CHOICES.get((vendor, family)) if capability == 'AVX512' else None
    return found or f'no other library is known to be faster on this processor ({vendor} family {family}, {capability})'


def identified(cpuinfo: str, processor: str) -> Tuple[str, int]:
    """Vendor and family of a processor.

    Args:
        cpuinfo: Text of Linux's /proc/cpuinfo; empty elsewhere.
        processor: What `platform.processor()` says; on Windows, such as 'AMD64 Family 25 Model 97 Stepping 2, Maker'.

    Returns:
        The vendor, 'unknown' where neither names it, and the family, or 0.
    """
    vendor = re.search(r'^vendor_id\s*:\s*(\S+)', cpuinfo, re.M) or re.search(r', (\w+)$', processor)
    family = re.search(r'^cpu family\s*:\s*(\d+)', cpuinfo, re.M) or re.search(r'Family (\d+)', processor)
    return vendor[1] if vendor else 'unknown', int(family[1]) if family else 0


def _cpuinfo() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            return file.read(4096)  # one processor says it all
    except OSError:
        return ''
