"""What fine-tuning learns from: pictures with captions, each content once, some of them held out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.evaluate.datasets import read_captions
from mmsearch.retrieval.media import content_hash, load_image
from mmsearch.retrieval.store.layout import CATALOG
from mmsearch.retrieval.store.reader import Snapshot
from mmsearch.retrieval.uris import absolute_path

LEAST = 2
"""Pairs of a picture and a caption that are told apart: with one there is nothing to tell it from."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures and captions; both are referred to by their rows.

    Attributes:
        paths: one file for each content.
        texts: each caption once; two that differ in case or white space are the same.
        captions: for each picture the rows of its captions.
        train, held: the rows of the pictures that are learned from and that are measured with.
        digest: of contents, captions and parts: the same data give the same digest wherever they lie.
        notices: what was left out, as lines for a person.
    """

    paths: tuple[Path, ...]
    texts: tuple[str, ...]
    captions: tuple[NDArray[np.int64], ...]
    train: NDArray[np.int64]
    held: NDArray[np.int64]
    digest: str
    notices: tuple[str, ...]

    def describes(self, pictures: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(pictures, texts): whether that text is a caption of that picture, in whichever of its rows it stands."""
        size = len(self.texts)
        wanted = np.concatenate([p * size + self.captions[p] for p in np.unique(pictures)])
        return np.isin(pictures[:, None] * size + texts[None], wanted)


def read_pairs(
    source: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    languages: Sequence[str] = (),
    holdout: float = 0.1,
    seed: int = 0,
    target: tuple[int, int] = (224, 224),
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Reads pairs from a captions file, a folder with one, or an index whose pictures have captions.

    Pictures of equal content are one picture with the captions of all, so that a copy of what is learned is never
    measured with. Which are held out depends on their content and the seed alone. Every picture is decoded once, so
    that one that cannot be is known before training begins.

    Args:
        source: the captions file, folder or index.
        images: folder of the pictures of a captions file.
        split: only pictures of this split of a captions file.
        languages: only captions in these.
        holdout: share of the pictures that is held out; 0 for none.
        seed: decides which.
        target: (height, width) that pictures are decoded for.
        progress: told (pictures read, pictures in all).

    Raises:
        PathNotFound: there is no such file.
        UsageError: there is nothing to tell apart: too few pairs, or all captions are the same.
    """
    notices: list[str] = []
    if (source / CATALOG).is_file():
        named = _of_index(source, notices)
    else:
        found = read_captions(source, images=images, split=split, languages=languages)
        named = {picture.path: [] for picture in found.pictures}
        for caption in found.captions:
            named[found.pictures[caption.picture].path].append(caption.text)
        left_out = found.left_out
        if left_out.missing:
            notices.append(f"{len(left_out.missing):,} pictures are not there: {_some(left_out.missing)}")
        if left_out.empty:
            notices.append(f"{left_out.empty:,} captions are empty")
    return _parted(_by_content(named, target, notices, progress), holdout, seed, notices)


def _of_index(index: Path, notices: list[str]) -> dict[Path, list[str]]:
    """The captions of each picture of an index: texts that belong to it; its tags where there is no text."""
    pictures: dict[int, Path] = {}
    named: dict[Path, list[str]] = {}
    with Snapshot.open(index) as snapshot:
        for item in snapshot.all_items():
            if item.modality == "image" and item.path is not None:
                pictures[item.item_id] = Path(item.path)
            elif item.modality == "text" and item.owner is not None and item.text:
                named.setdefault(Path(absolute_path(item.root, item.owner)), []).append(item.text)
        tags = snapshot.tags(list(pictures))
    here = set(pictures.values())
    named = {path: texts for path, texts in named.items() if path in here}
    tagged = {pictures[item]: list(words) for item, words in tags.items() if pictures[item] not in named}
    if tagged:
        notices.append(f"{len(tagged):,} pictures have tags and no captions: their tags are the captions")
    if not named and not tagged:
        raise UsageError(
            f"no picture of {index} has a caption or a tag; index a manifest with captions, or texts beside pictures "
            "(x.txt beside x.jpg), or give a captions file"
        )
    return named | tagged


def stored_images(index: Path, pairs: Pairs, identities: Sequence[str]) -> NDArray[np.float32] | None:
    """(n, dim) embeddings that an index holds of the training pictures; None if it is of another model.

    Args:
        index: that the pairs were read from.
        pairs: whose training part it is.
        identities: of the model; the bundled one has two.
    """
    with Snapshot.open(index) as snapshot:
        if snapshot.identity not in identities:
            return None
        items = {Path(i.path): i.item_id for i in snapshot.all_items() if i.modality == "image" and i.path is not None}
        wanted = [items.get(pairs.paths[row]) for row in pairs.train]
        known = [item for item in wanted if item is not None]
        return snapshot.vectors("image", known) if len(known) == len(wanted) else None


def _by_content(
    named: dict[Path, list[str]],
    target: tuple[int, int],
    notices: list[str],
    progress: Callable[[int, int], None] | None,
) -> list[tuple[bytes, Path, list[str]]]:
    """Each content once, by its hash."""
    contents: dict[bytes, tuple[Path, list[str]]] = {}
    unread = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (path, key) in enumerate(zip(named, pool.map(partial(_hash, target), named), strict=True), 1):
            if key is None:
                unread.append(str(path))
            else:
                contents.setdefault(key, (path, []))[1].extend(named[path])
            if progress is not None:
                progress(done, len(named))
    if unread:
        notices.append(f"{len(unread):,} pictures cannot be read: {_some(unread)}")
    return [(key, path, texts) for key, (path, texts) in sorted(contents.items())]


def _hash(target: tuple[int, int], path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
        load_image(content, target=target)
    except (OSError, MediaError):
        return None
    return content_hash(content)


def _parted(found: list[tuple[bytes, Path, list[str]]], holdout: float, seed: int, notices: list[str]) -> Pairs:
    texts: dict[str, int] = {}
    shown: list[str] = []
    captions = [_rows(own, texts, shown) for _, _, own in found]
    kept = [i for i, rows in enumerate(captions) if len(rows)]
    if len(kept) < LEAST:
        raise UsageError(
            f"training tells pictures apart by their captions, and there {_are(len(kept))}: it needs at least {LEAST} "
            "different pictures with a caption each, and some hundreds to be of use"
        )
    if len({tuple(captions[i]) for i in kept}) == 1:
        raise UsageError(
            f"all {len(kept):,} pictures have the same captions ({shown[captions[kept[0]][0]]!r}): nothing tells them "
            "apart, so there is nothing to learn"
        )
    order = sorted(range(len(kept)), key=lambda row: hashlib.blake2b(found[kept[row]][0] + b"%d" % seed).digest())
    held = np.array(sorted(order[: math.ceil(holdout * len(kept))]) if holdout else [], np.int64)
    train = np.setdiff1d(np.arange(len(kept)), held)
    kept_captions = [captions[i] for i in kept]
    for part, rows in (("learned from", train), *((("held out", held),) if holdout else ())):
        if len(rows) < LEAST or len({tuple(kept_captions[i]) for i in rows}) == 1:
            raise UsageError(
                f"too few pictures: {len(kept):,} in all, and the {len(rows):,} that would be {part} cannot be told "
                "apart by their captions; give more, or another --holdout (0 holds none out)"
            )
    digest = hashlib.blake2b(digest_size=16)
    for i in kept:
        digest.update(found[i][0])
        digest.update("\n".join(shown[row] for row in captions[i]).encode())
    digest.update(held.tobytes())
    paths = tuple(found[i][1] for i in kept)
    return Pairs(paths, tuple(shown), tuple(kept_captions), train, held, digest.hexdigest(), tuple(notices))


def _rows(captions: list[str], texts: dict[str, int], shown: list[str]) -> NDArray[np.int64]:
    """The rows of captions among all `texts`; those that are new are put there, as they are `shown`."""
    rows = set()
    for caption in captions:
        plain = " ".join(caption.split())
        if not plain:
            continue
        row = texts.setdefault(plain.casefold(), len(shown))
        if row == len(shown):
            shown.append(plain)
        rows.add(row)
    return np.array(sorted(rows), np.int64)


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count:,}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
