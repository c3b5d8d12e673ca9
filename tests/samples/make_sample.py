"""Makes the sample index of the current format: `PYTHONPATH=.:tests python tests/samples/make_sample.py`.

Run once for each format, by the change that introduces it; the folder is committed and never made again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from store_kit import enrich, enrich_with_tokens, prepare

from mmsearch.retrieval.store import layout


def main() -> None:
    target = Path(__file__).parent / f"format-{layout.FORMAT_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(Path(folder) / "photos" / "index")
        enrich(store)
        enrich_with_tokens(store)
        (store.path / layout.LOCK).unlink()
        for name in ("-wal", "-shm"):
            log = store.path / f"{layout.CATALOG}{name}"
            if log.exists() and log.stat().st_size and name == "-wal":
                raise SystemExit("the log of the catalog is not empty; is a reader open?")
            log.unlink(missing_ok=True)
        shutil.copytree(store.path, target)


if __name__ == "__main__":
    main()
