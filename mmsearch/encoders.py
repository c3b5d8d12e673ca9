"""The encoders that an index has loaded: each once, when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

from mmsearch.retrieval.errors import ModelUnavailable

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder

VECTORS = "vectors"
"""Name of the model of an index that was made of vectors alone; no encoder has it."""


class Options(TypedDict):
    """How encoders are loaded; see `retrieval.encoders.models.load_encoder`."""

    device: str | None
    precision: str | None
    threads: int | None
    batch_size: int | None
    offline: bool
    confirm: Callable[[str, int], bool] | None
    progress: Callable[[str, int, int], None] | None


class Encoders:
    """Loads encoders by name and keeps them. Safe from several threads."""

    def __init__(self, **options: Unpack[Options]) -> None:
        self._options = options
        self._loaded: dict[tuple[str, bool], Encoder] = {}
        self._lock = threading.Lock()

    def get(self, model: str, *, offline: bool = False) -> Encoder:
        """The encoder of a preset, tag or `auto`.

        Raises:
            ModelUnavailable: it is not here and may not be downloaded, or there is none of that name.
        """
        if model == VECTORS:
            raise ModelUnavailable(
                "no model reads words or pictures for an index that was made of vectors alone: search it with a vector"
            )
        offline = offline or self._options["offline"]
        with self._lock:
            if (model, offline) not in self._loaded:
                from mmsearch.retrieval.encoders.models import load_encoder

                options: Options = {**self._options, "offline": offline}
                self._loaded[model, offline] = load_encoder(model, **options)
            return self._loaded[model, offline]

    def keep(self, model: str, encoder: Encoder) -> None:
        """Notes an encoder under the name that it is asked for next."""
        with self._lock:
            self._loaded[model, self._options["offline"]] = encoder
