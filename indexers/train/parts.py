"""Which parameters of an open_clip model are trained, and linear maps that become part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from mmsearch.indexers.train.engine import State
from mmsearch.retrieval.errors import UsageError

How = Literal["full", "last", "probe"]

_LAST = re.compile(r"(^|\.)(proj|text_projection|head|ln_post|ln_final|attn_pool|attnpool|pooler)(\.|$)")
_WORDS = ("token_embedding.weight", "word_embeddings.weight", "embed_tokens.weight", "wte.weight", "shared.weight")
_BESIDE = "text_decoder."  # of CoCa: writes captions, and has no part in the embeddings
_FIRST = ".patch_embed."  # of timm: has a `proj` of its own
_ENDS = {
    "image": ("visual.proj", "visual.head.proj", "visual.head.mlp.fc2", "visual.attnpool.c_proj", "visual.trunk.head"),
    "text": ("text_projection", "text.text_projection", "text.proj", "text.proj.2"),
}


def choose(model: nn.Module, how: How, blocks: int) -> None:
    """Freezes what is not to be trained. The temperature (and a bias) is trained in every mode.

    Args:
        model: an open_clip model.
        how: `full` trains all but the table of words, in which the words of the captions would drift away from all
            others, and which is most of a small model's weights; `last` the last `blocks` blocks of each tower, what
            comes after them, and the projections; `probe` nothing of the towers.
        blocks: see `how`.

    Raises:
        UsageError: a tower is not made of blocks.
    """
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        trained = how == "full" and not name.endswith(_WORDS) and not name.startswith(_BESIDE)
        parameter.requires_grad_(trained or name in ("logit_scale", "logit_bias"))
    if how != "last":
        return
    for tower in ("image", "text"):
        own = [
            name
            for name in named
            if name.startswith("visual.") == (tower == "image") and not name.startswith(("logit_", _BESIDE))
        ]
        for name in _last_names(model, own, tower, blocks):
            named[name].requires_grad_(True)


def _last_names(model: nn.Module, own: list[str], tower: str, blocks: int) -> Iterator[str]:
    """Of a tower's parameters those of its last blocks and of what comes after them."""
    sizes: dict[str, int] = {}
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        inside = name.startswith("visual") == (tower == "image") and name
        if inside and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            sizes[name] = sum(parameters[one].numel() for one in own if one.startswith(f"{name}."))
    if not sizes:
        raise UsageError(f"the {tower} tower of this model is not made of blocks: train it with --how full or probe")
    stack = max(sizes, key=lambda name: sizes[name])
    children = [f"{stack}.{name}." for name, _ in model.get_submodule(stack).named_children()]
    after = False
    for name in own:
        if name.endswith(_WORDS) or _FIRST in name:  # open_clip registers the words after the blocks
            continue
        if name.startswith(f"{stack}."):
            after = True
            if name.startswith(tuple(children[-blocks:])):
                yield name
        elif after or _LAST.search(name):
            yield name


def still_norms(model: nn.Module) -> None:
    """Lets batch norms use what they have learned: the statistics of a small batch would ruin them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class Probe(nn.Module):
    """A linear map after each tower, beside the model's temperature. They begin as no change.

    Args:
        dim: of the embeddings.
        sides: the towers that can take a map up: `image`, `text`.
        model: whose temperature (and bias) it begins with.
    """

    def __init__(self, dim: int, sides: tuple[str, ...], model: Any) -> None:
        super().__init__()
        self.change = nn.ParameterDict({side: nn.Parameter(torch.zeros(dim, dim)) for side in sides})
        self.logit_scale = nn.Parameter(model.logit_scale.detach().cpu().clone())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else nn.Parameter(bias.detach().cpu().clone())

    def embed(self, side: str, rows: torch.Tensor) -> torch.Tensor:
        """(n, dim) embeddings of the base to rows of length 1 of the mapped space."""
        if side in self.change:
            rows = rows + rows @ self.change[side]
        return nn.functional.normalize(rows, dim=-1)


def ends(model: nn.Module, side: str) -> str | None:
    """The name of the linear layer or matrix that a tower ends with; None if it ends with something else."""
    for name in _ENDS[side]:
        try:
            found = model.get_parameter(name) if name.endswith("proj") or "projection" in name else None
        except AttributeError:
            found = None
        if found is not None and found.ndim == 2:
            return name
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return name
    return None


@torch.no_grad()
def fold(model: nn.Module, name: str, change: torch.Tensor) -> None:
    """Makes a tower's end also map its rows by `1 + change`: (dim, dim), from the right."""
    whole = change + torch.eye(len(change), device=change.device)
    try:
        module = model.get_submodule(name)
    except AttributeError:
        matrix = model.get_parameter(name)
        matrix.copy_(matrix @ whole.to(matrix))
        return
    assert isinstance(module, nn.Linear)
    module.weight.copy_(whole.to(module.weight).T @ module.weight)
    if module.bias is not None:
        module.bias.copy_(module.bias @ whole.to(module.bias))


@torch.no_grad()
def averaged(base: State, tuned: State, share: float) -> State:
    """(1 - share) of the base's weights and `share` of the tuned ones.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv 2109.01903.
    """
    return {
        name: torch.lerp(base[name].to(value), value, share) if value.is_floating_point() else value
        for name, value in tuned.items()
    }
