"""Where a torch model runs and how exactly: the device, the precision, the processor's threads."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16")
_DEVICES = ("cpu", "mps", "cuda")


class Placement:
    """A device and a precision, checked. Made before the model: torch's threads are set here.

    Args:
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16` (autocast); None takes fp16 on CUDA, else fp32.
        threads: torch's processor threads, a setting of the whole process; None lowers torch's own
            choice where the container allows fewer.

    Attributes:
        device: a `torch.device`.
        kind: `cpu`, `mps` or `cuda`.

    Raises:
        UsageError: a device that is not here, or an unknown precision.
    """

    def __init__(self, device: str | None = None, precision: str | None = None, threads: int | None = None) -> None:
        self._torch = importlib.import_module("torch")
        self.device = _pick_device(self._torch, device)
        self.kind = str(self.device.type)
        self.precision = precision or ("fp16" if self.kind == "cuda" else "fp32")
        if self.precision not in PRECISIONS:
            raise UsageError(f"no precision is called `{precision}`; choose one of {', '.join(PRECISIONS)}")
        if threads is not None or usable_cpus() < self._torch.get_num_threads():
            self._torch.set_num_threads(threads or usable_cpus())

    def run(self, name: str, forward: Callable[[], Any]) -> NDArray[np.float32]:
        """What a model makes of a batch, as float32; a batch that overflows is done again in fp32.

        Args:
            name: of the model, for the log.
            forward: calls the model, and gives its tensor.
        """
        import numpy as np

        rows = self._run(forward, self.precision)
        if self.precision != "fp32" and not np.isfinite(rows).all():
            _log.info("%s overflowed in %s; that batch is done again in fp32", name, self.precision)
            rows = self._run(forward, "fp32")
        return rows

    def _run(self, forward: Callable[[], Any], precision: str) -> NDArray[np.float32]:
        torch = self._torch
        lower: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if precision != "fp32":
            lower = torch.autocast(self.kind, torch.bfloat16 if precision == "bf16" else torch.float16)
        with torch.inference_mode(), lower:
            rows: NDArray[np.float32] = forward().float().cpu().numpy()
        return rows


def _pick_device(torch: Any, device: str | None) -> Any:
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"no device is called `{device}`; choose cpu, cuda, cuda:N or mps") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"torch sees no `{device}` here; try --device cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("torch sees no `mps` here; try --device cpu")
    if chosen.type not in _DEVICES:
        raise UsageError(f"`{device}` is not supported; choose cpu, cuda, cuda:N or mps")
    return chosen
