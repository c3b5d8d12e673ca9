"""One index run in a process of its own: `python benchmarks/index_once.py FOLDER INDEX MODEL`.

Prints one JSON object: `seconds` of `Index.add`, `peak_bytes` of this process, `added` and `unchanged` files.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:
        # Not ru_maxrss: on Linux it begins with the peak of the process that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Runs it."""
    import mmsearch

    folder, index_path, model = sys.argv[1:]
    with mmsearch.open(index_path, model=model) as index:
        start = time.perf_counter()
        report = index.add(folder)
        seconds = time.perf_counter() - start
    if report.failed:
        sys.exit(f"{len(report.failed)} files failed, the first: {report.failed[0]}")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_bytes": peak_bytes(),
                "added": report.added,
                "unchanged": report.unchanged,
            }
        )
    )


if __name__ == "__main__":
    main()
