"""What an image that is read in parts must be."""

from typing import Any, Protocol, Tuple


class TileSource(Protocol):
    """An image that is read in parts.

    Attributes:
        name: What errors call it.
        shape: Height, width and channels.
        tile: Height and width of the parts that are best read at once.

    A `version`, as the size and the time of a file, says whether the image is still the same; saved states need one.
    """

    name: str
    shape: Tuple[int, int, int]
    tile: Tuple[int, int]

    def read(self, rows: slice, columns: slice) -> Any:
        """A NumPy array (height, width, channels) of uint8, uint16, or floating-point numbers from 0 to 1."""
