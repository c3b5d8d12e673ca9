"""The plain torch loop that indexing is compared with, in a process of its own.

It exports the starter to the folder named on its command line and loads it as stock open_clip does. Then, for
each JSON list of paths on stdin, it embeds those photos the way a script would and answers with the seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 32


def embed(paths: list[str], model: Any, preprocess: Any) -> float:
    """Seconds to open, preprocess and embed the photos, batch after batch."""
    import torch
    from PIL import Image

    start = time.perf_counter()
    rows = []
    with torch.inference_mode():
        for first in range(0, len(paths), BATCH):
            batch = [preprocess(Image.open(path)) for path in paths[first : first + BATCH]]
            rows.append(model.encode_image(torch.stack(batch), normalize=True))
        torch.cat(rows).numpy()
    return time.perf_counter() - start


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not get between the answers

    from mmsearch.retrieval.encoders.export import export_open_clip
    from mmsearch.retrieval.encoders.machine import usable_cpus
    from mmsearch.retrieval.encoders.open_clip import import_torchvision

    import_torchvision()
    import open_clip
    import torch

    torch.set_num_threads(usable_cpus())
    folder = export_open_clip(Path(sys.argv[1]))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    for line in sys.stdin:
        print(json.dumps(embed(json.loads(line), model, preprocess)), file=answers, flush=True)


if __name__ == "__main__":
    main()
