"""What the image towers of open_clip make of the places of a picture, before they pool it.

A tower is either a network of convolutions, whose last map is pooled, or a transformer, whose patch tokens a class
token or an attention pool reads. Neither needs to be known by name: how a tower pools is seen from its gradients.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.encoders.cells import WINDOW, Method, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scores = tuple["NDArray[np.float32]", Method]


def score_cells(tower: Any, pixels: Callable[[int], Any], row: Any) -> Scores | None:
    """Scores for the cells of a picture, (rows, columns), or None for a tower that is built in no known way.

    Args:
        tower: the `visual` of an open_clip model.
        pixels: gives the preprocessed picture, (1, 3, height, width), that many times as large as the model asks for.
        row: the query, (dim,), length 1, on the tower's device.
    """
    trunk: Any = getattr(tower, "trunk", None)
    if hasattr(tower, "layer4"):
        return _by_gradient(tower, tower.layer4, pixels(1), row)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is not None:
        return _of_tokens(tower, (blocks[-1], blocks[-1].ln_1), tower.grid_size, pixels(1), row)
    grid = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if grid and hasattr(trunk, "norm") and hasattr(trunk.blocks[-1], "norm1"):
        return _of_tokens(tower, (trunk.blocks[-1], trunk.blocks[-1].norm1), grid, pixels(1), row)
    if hasattr(trunk, "forward_features") and hasattr(trunk, "forward_head"):
        return _of_map(tower, pixels, row)
    return None


def _of_map(tower: Any, pixels: Callable[[int], Any], row: Any) -> Scores | None:
    """Of a network of timm whose last layer is a map (1, channels, rows, columns)."""
    torch = importlib.import_module("torch")

    def embed(cells: Any) -> Any:
        return tower.head(tower.trunk.forward_head(cells))

    with torch.no_grad():
        cells = tower.trunk.forward_features(pixels(1))
    if cells.ndim != 4 or getattr(tower.trunk, "output_fmt", "NCHW") != "NCHW":
        return None
    with torch.enable_grad():
        leaf = cells.detach().requires_grad_()
        score = _cosine(embed(leaf), row)
        (slope,) = torch.autograd.grad(score, leaf)
    if not torch.allclose(slope, slope.mean((2, 3), keepdim=True).expand_as(slope), rtol=1e-3, atol=1e-9):
        return _numbers((slope * cells).sum(1)[0]), "gradient"  # its pool prefers places
    with torch.no_grad():
        whole, alone = embed(cells)[0], embed(_each(cells))
        if torch.allclose(alone.mean(0), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())):
            parts = alone @ row / (len(alone) * whole.norm())
            return _numbers(parts.reshape(cells.shape[2:])), "activation"
        cells = tower.trunk.forward_features(pixels(2))
        size = min(WINDOW, *cells.shape[2:])
        windows = torch.nn.functional.avg_pool2d(cells, size, 1)
        scores = _cosine(embed(_each(windows)), row).reshape(windows.shape[2:])
    return spread(_numbers(scores), size), "windows"


def _of_tokens(tower: Any, places: tuple[Any, Any], grid: tuple[int, int], pixels: Any, row: Any) -> Scores | None:
    """Of a transformer: at the end of its last block, or, if only the class token is read there, before it attends."""
    for place in places:
        scores = _by_gradient(tower, place, pixels, row, grid)
        if scores is not None:
            return scores
    return None


def _by_gradient(tower: Any, module: Any, pixels: Any, row: Any, grid: tuple[int, int] | None = None) -> Scores | None:
    """Gradient times what `module` gives: a map, or tokens that end with those of `grid`; None where it is all zero."""
    torch = importlib.import_module("torch")
    mine, seen = threading.get_ident(), []

    def cut(_module: Any, _inputs: Any, output: Any) -> Any:
        """Starts the graph here: what comes before needs no gradients, and other threads none at all."""
        if threading.get_ident() != mine:
            return None
        torch.set_grad_enabled(True)
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = module.register_forward_hook(cut)
    try:
        with torch.no_grad():
            score = _cosine(tower(pixels), row)
    finally:
        hook.remove()
    if len(seen) != 1:
        return None
    (slope,) = torch.autograd.grad(score, seen[0], allow_unused=True)
    if slope is None:
        return None
    parts = (slope * seen[0]).detach()
    if grid is None:
        return _numbers(parts.sum(1)[0]), "gradient"
    tokens = parts.sum(-1).reshape(-1)  # of one picture, whichever axis is the batch
    count = grid[0] * grid[1]
    if len(tokens) < count or not bool(tokens[-count:].any()):
        return None
    return _numbers(tokens[-count:].reshape(tuple(grid))), "gradient"


def _each(cells: Any) -> Any:
    """A map (1, channels, rows, columns) as one map of a single cell for each of its cells, row by row."""
    return cells[0].flatten(1).T[:, :, None, None]


def _cosine(embeddings: Any, row: Any) -> Any:
    rows = embeddings[0] if isinstance(embeddings, tuple) else embeddings
    return importlib.import_module("torch").nn.functional.normalize(rows, dim=-1) @ row


def _numbers(tensor: Any) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return numbers
