"""The bar of what goes through files."""

from typing import Optional


def progress_bar(total: Optional[int], unit: str):
    """A bar on stderr that is removed at its end.

    Args:
        total: How many there are; None if that is not known.
        unit: What one is called.

    Returns:
        tqdm's, or None where it is not installed: a bar is no reason to fail.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=total, unit=unit, mininterval=0.5, leave=False)
