"""The device that a word names."""

import torch


def find_device(name: str = 'auto') -> torch.device:
    """A device of this machine.

    Args:
        name: 'auto' (the accelerator if there is one, else the CPU), or as `torch.device` takes it: 'cpu', 'cuda:1'.

    Raises:
        ValueError: There is no such device; the message has those that there are.
    """
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator().type if count else 'cpu'
    if name == 'auto':
        return torch.device(kind)
    here = ['cpu', *([kind, *(f'{kind}:{index}' for index in range(count))] if count else [])]
    if name not in here:
        raise ValueError(f'no device {name!r} here, but {", ".join(here)}; auto takes the fastest')
    return torch.device(name)
