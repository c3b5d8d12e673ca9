"""Figures of a dual encoder that need only embeddings, and the sentences some of them are measured with.

Nothing here imports torch, so that benchmarks can measure any encoder, however it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.evaluate import first_ranks, success_at_k

LANGUAGES = ("en", "de", "fr", "es", "ja")

SENTENCES = (
    ("a dog runs across green grass", "ein Hund läuft über grünes Gras", "un chien court sur l'herbe verte",
     "un perro corre por la hierba verde", "犬が緑の芝生の上を走っている"),
    ("two children are playing in the snow", "zwei Kinder spielen im Schnee", "deux enfants jouent dans la neige",
     "dos niños juegan en la nieve", "二人の子供が雪の中で遊んでいる"),
    ("a man is climbing a steep rock", "ein Mann klettert an einem steilen Felsen",
     "un homme escalade un rocher escarpé", "un hombre escala una roca empinada", "男性が険しい岩を登っている"),
    ("a surfer rides a big wave", "ein Surfer reitet auf einer großen Welle", "un surfeur glisse sur une grande vague",
     "un surfista monta una gran ola", "サーファーが大きな波に乗っている"),
    ("a girl in a red dress", "ein Mädchen in einem roten Kleid", "une fille en robe rouge",
     "una niña con un vestido rojo", "赤いドレスを着た女の子"),
    ("football players on a field", "Fußballspieler auf einem Spielfeld", "des joueurs de football sur un terrain",
     "jugadores de fútbol en un campo", "フィールドにいるサッカー選手たち"),
    ("a boy jumps into a swimming pool", "ein Junge springt in ein Schwimmbecken", "un garçon saute dans une piscine",
     "un niño salta a una piscina", "男の子がプールに飛び込む"),
    ("a man rides a bicycle on a trail", "ein Mann fährt mit dem Fahrrad auf einem Weg",
     "un homme fait du vélo sur un sentier", "un hombre va en bicicleta por un sendero",
     "男性が小道で自転車に乗っている"),
    ("people are sitting at a table in a restaurant", "Leute sitzen an einem Tisch in einem Restaurant",
     "des gens sont assis à une table dans un restaurant", "gente sentada a una mesa en un restaurante",
     "人々がレストランのテーブルに座っている"),
    ("a horse jumps over an obstacle", "ein Pferd springt über ein Hindernis", "un cheval saute un obstacle",
     "un caballo salta un obstáculo", "馬が障害物を飛び越える"),
)  # fmt: skip
"""Ten sentences in `LANGUAGES`; none is a caption of the data."""


def retrieval_ranks(
    captions: NDArray[np.float32], images: NDArray[np.float32], photos: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First ranks of text-to-image: one per caption; and of image-to-text: one per photo.

    Args:
        captions: (n, dim) rows.
        images: (m, dim) rows.
        photos: for each caption the row of its photo.
    """
    of_photo: list[list[int]] = [[] for _ in images]
    for caption, photo in enumerate(photos):
        of_photo[photo].append(caption)
    return first_ranks(captions, images, [[p] for p in photos]), first_ranks(images, captions, of_photo)


def retrieval_figures(
    name: str, captions: NDArray[np.float32], images: NDArray[np.float32], photos: Sequence[int]
) -> dict[str, float]:
    """success@1/5/10 in both directions; arguments as `retrieval_ranks`."""
    to_image, to_text = retrieval_ranks(captions, images, photos)
    figures = {f"{name} t2i@{k}": success_at_k(to_image, k) for k in (1, 5, 10)}
    return figures | {f"{name} i2t@{k}": success_at_k(to_text, k) for k in (1, 5, 10)}
