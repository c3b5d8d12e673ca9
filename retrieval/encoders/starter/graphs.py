"""ONNX graphs of a folder, each loaded when it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime


class Graphs:
    """Sessions of ONNX Runtime by file name. Safe from several threads.

    Args:
        folder: where the graphs and the weights that they point into lie.
        threads: of each session.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._loading = threading.Lock()
        self._loaded: dict[str, onnxruntime.InferenceSession] = {}

    def get(self, name: str) -> onnxruntime.InferenceSession:
        """The session of a graph."""
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        return ort.InferenceSession(self._folder / name, options, providers=["CPUExecutionProvider"])
