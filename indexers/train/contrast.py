"""The two contrastive losses, over a batch whose false negatives are known."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_NEVER = -1e4


def softmax_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """The loss of CLIP: each picture finds its caption among those of the batch, each caption its picture.

    Args:
        logits: (n, n) scaled cosines, pictures by captions; the pairs are the diagonal.
        same: (n, n) where a caption describes a picture though it is not its pair: no negative, so left out.

    Source: Radford et al., arXiv 2103.00020, figure 3.
    """
    logits = logits.float().masked_fill(same, _NEVER)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """The loss of SigLIP: every picture and caption of the batch is a yes or a no of its own.

    Args:
        logits: (n, n) scaled cosines plus the bias; the pairs are the diagonal.
        same: as in `softmax_loss`.

    Source: Zhai et al., arXiv 2303.15343, algorithm 1: the sum over all pairs, per picture.
    """
    logits = logits.float()
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    each = F.softplus(-signs * logits)
    return each.masked_fill(same, 0.0).sum() / len(logits)
