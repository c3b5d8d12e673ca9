"""What the image towers of open_clip make of the places of a picture, before they pool it.

A tower is either a network of convolutions, whose last map is pooled, or a transformer, whose patch tokens a class
token or an attention pool reads. Neither needs to be known by name: how a tower pools is seen from its gradients.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmsearch.retrieval.encoders.cells import WINDOW, Method, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PREFIX = 16  # at most so many tokens stand before the patches

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
        split = _split(tower, tower.layer4, pixels(1), row)
        return None if split is None else (_numbers((split.slope * split.given).sum(1)[0]), "gradient")
    body: Any = getattr(tower, "transformer", None)
    if hasattr(body, "resblocks"):
        pool = getattr(getattr(tower, "attn_pool", None), "ln_k", None)
        return _of_tokens(tower, (pool, tower.ln_post, body.resblocks[-1].ln_1), tower, pixels(1), row)
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "blocks") and hasattr(trunk.blocks[-1], "norm1"):
        return _of_tokens(
            tower, (getattr(trunk, "norm", None), trunk.blocks[-1].norm1), trunk.patch_embed, pixels(1), row
        )
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
    # How the tower pools is tried out on random cells: those of a plain picture are all alike and would hide it.
    random = torch.rand(cells.shape, generator=torch.Generator().manual_seed(0)).to(cells) * cells.abs().max()
    probe = _through(embed, random, row)
    if probe is None:
        return None
    if not _equal(probe.slope, probe.slope.mean((2, 3), keepdim=True)):
        split = _through(embed, cells, row)
        return None if split is None else (_numbers((split.slope * cells).sum(1)[0]), "gradient")
    with torch.no_grad():
        if _equal(embed(random)[0], embed(_each(random)).mean(0)):
            alone = embed(_each(cells))
            parts = alone @ row / (len(alone) * embed(cells)[0].norm())
            return _numbers(parts.reshape(cells.shape[2:])), "activation"
        cells = tower.trunk.forward_features(pixels(2))
        size = min(WINDOW, *cells.shape[2:])
        windows = torch.nn.functional.avg_pool2d(cells, size, 1)
        scores = torch.nn.functional.normalize(embed(_each(windows)), dim=-1) @ row
    return spread(_numbers(scores.reshape(windows.shape[2:])), size), "windows"


def _of_tokens(tower: Any, norms: tuple[Any, ...], patches: Any, pixels: Any, row: Any) -> Scores | None:
    """Of a transformer: after the norm that all patch tokens pass last.

    Before a norm there is nothing to see: it takes the length off a token, so gradient times token is zero there. If
    only the class token is read in the end, the last thing that patches do is to be attended to in the last block.

    Args:
        tower: as in `score_cells`.
        norms: to be tried in this order.
        patches: what knows `grid_size` and `patch_size`.
        pixels: the picture, (1, 3, height, width).
        row: the query.
    """
    torch = importlib.import_module("torch")
    for norm in norms:
        split = None if norm is None else _split(tower, norm, pixels, row)
        if split is None or split.given.ndim != 3:
            continue
        slope, tokens = (each.flatten(0, 1) for each in (split.slope, split.given))  # whichever axis is the batch
        grid = _grid(patches, pixels, len(tokens))
        if grid is None:
            continue
        slope, tokens = (each[-grid[0] * grid[1] :] for each in (slope, tokens))
        if not slope.any():
            continue
        parts = (slope * tokens).sum(-1)
        linear = _equal(slope, slope.mean(0)) and torch.isclose(parts.sum(), split.cosine, rtol=1e-4, atol=1e-6)
        return _numbers(parts.reshape(grid)), "activation" if linear else "gradient"
    return None


def _grid(patches: Any, pixels: Any, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the patches among the tokens, which class and register tokens precede."""
    grids = [patches.grid_size]
    if isinstance(patches.patch_size, tuple):  # of towers that take other sizes than the one they were made for
        grids.append(tuple(side // patch for side, patch in zip(pixels.shape[2:], patches.patch_size, strict=True)))
    fitting = (grid for grid in grids if grid and 0 <= tokens - grid[0] * grid[1] <= _PREFIX)
    return next(fitting, None)


class _Split(NamedTuple):
    """What a module gives for a picture, the gradient of the picture's cosine by that, and the cosine.

    The length of the embedding counts as a constant. What is linear from the module on is then split without rest:
    the products sum to the cosine.
    """

    given: Any
    slope: Any
    cosine: Any


def _split(tower: Any, module: Any, pixels: Any, row: Any) -> _Split | None:
    """Runs the tower; None if the cosine does not depend on what `module` gives, or if that runs several times."""
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
            embedding = tower(pixels)
    finally:
        hook.remove()
    return _differentiate(embedding, row, seen[0]) if len(seen) == 1 else None


def _through(embed: Callable[[Any], Any], cells: Any, row: Any) -> _Split | None:
    """As `_split`, for a map that is there already."""
    with importlib.import_module("torch").enable_grad():
        leaf = cells.detach().requires_grad_()
        return _differentiate(embed(leaf), row, leaf)


def _differentiate(embedding: Any, row: Any, leaf: Any) -> _Split | None:
    torch = importlib.import_module("torch")
    (embedding,) = embedding[0] if isinstance(embedding, tuple) else embedding
    with torch.enable_grad():
        cosine = embedding @ row / embedding.detach().norm()
    if not cosine.requires_grad:
        return None
    (slope,) = torch.autograd.grad(cosine, leaf, allow_unused=True)
    return None if slope is None else _Split(leaf.detach(), slope, cosine.detach())


def _equal(some: Any, others: Any) -> bool:
    """Whether tensors are equal, up to rounding that is measured by the largest number."""
    gap = (some - others).abs().max()
    return bool(gap <= 1e-4 * some.abs().max())


def _each(cells: Any) -> Any:
    """A map (1, channels, rows, columns) as one map of a single cell for each of its cells, row by row."""
    return cells[0].flatten(1).T[:, :, None, None]


def _numbers(tensor: Any) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return numbers
