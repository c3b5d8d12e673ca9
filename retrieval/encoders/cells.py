"""Where in a picture a query is, as far as an encoder can tell: a score for each cell of its grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

Method = Literal["activation", "windows", "gradient", "crops"]
"""How cells are scored.

- `activation`: class-activation map (Zhou et al., CVPR 2016) of a tower that averages its last map and projects it
  linearly. Exact: the cells are the parts of the picture's cosine and sum to it.
- `windows`: a tower that averages its last map and goes on non-linearly, pooling one window of the map after the other
  (sliding windows in one pass: Sermanet et al., OverFeat, ICLR 2014). The score of a cell is the mean cosine of the
  windows that cover it.
- `gradient`: gradient times activation of the last map or of the last patch tokens (HiResCAM, Draelos and Carin, 2020;
  Grad-CAM, Selvaraju et al., ICCV 2017, before it averages): the parts of the cosine, to first order.
- `crops`: the picture cut into overlapping windows that are encoded one by one; for every encoder, and slow.
"""

WINDOW = 3
"""Sides of a window of `windows`, in cells of the last map; those of the bundled model's `windows.onnx` too."""

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The box of an encoder that sees the whole picture."""


@dataclass(frozen=True, slots=True)
class Cells:
    """What an encoder says of the places of one picture.

    Attributes:
        scores: (rows, columns), higher where the query is; comparable inside one picture only.
        method: how they were made.
        box: left, top, right and bottom of what the cells cover, as shares of the picture as it is shown. Below 0
            and above 1 where the encoder pads, within where it crops.
    """

    scores: NDArray[np.float32]
    method: Method
    box: tuple[float, float, float, float] = WHOLE


class Locating(Protocol):
    """An `Encoder` that can look into its image tower."""

    def heat_map(self, image: Image.Image, row: NDArray[np.float32]) -> Cells | None:
        """Scores the cells of an upright RGB picture for a query; None if the tower cannot be looked into.

        Args:
            image: as `Encoder.preprocess` takes it.
            row: (dim,), a unit vector of the encoder's space.
        """
        ...


def spread(windows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Scores of overlapping square windows to those of cells: each cell gets the mean of the windows that cover it.

    Args:
        windows: (rows, columns), one for each place of the window, a step of one cell apart.
        size: sides of a window in cells.

    Returns:
        (rows + size - 1, columns + size - 1).
    """
    rows, columns = windows.shape
    total = np.zeros((rows + size - 1, columns + size - 1), np.float32)
    count = np.zeros_like(total)
    for down in range(size):
        for across in range(size):
            total[down : down + rows, across : across + columns] += windows
            count[down : down + rows, across : across + columns] += 1
    total /= count
    return total
