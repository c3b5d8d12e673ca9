"""What the rerankers on transformers cost: milliseconds per candidate, beside the bare model.

    python benchmarks/rerank.py --out benchmarks/results/rerank.json
    python benchmarks/rerank.py --only bert minilm --batch-size 1

Speed needs no public weights: models of the true shapes (blip-itm-base, a cross-encoder on BERT-base, MiniLM-L6) are
drawn at random in a temporary folder, since a matrix product takes as long with any numbers. Each adapter takes turns
with the bare `forward` of transformers, which gets the same batches as ready tensors; what decoding, preprocess and
tokenizing cost is the adapter's. Random weights rank at random: what a reranker gains is not
measured here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from contest import Figure, alternate, ratio, write_result, write_table
from machine import describe

from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.open_clip import import_torchvision
from mmsearch.retrieval.media import load_image
from mmsearch.retrieval.rerank import RerankCandidate
from mmsearch.retrieval.rerank.blip import BlipReranker
from mmsearch.retrieval.rerank.cross_encoder import CrossEncoderReranker

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERY = "a brown dog runs across the green grass with a red ball"
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the of on in with two man woman child dog cat horse bird runs jumps sits stands"
    " plays across near green grass red blue brown white black ball water beach street car bicycle snow mountain"
).split()

_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class Options(NamedTuple):
    """What the command line asks for."""

    rounds: int
    pictures: int
    texts: int
    threads: int
    precision: str
    batch_size: int | None

    @property
    def of_adapter(self) -> dict[str, Any]:
        """What an adapter takes of them."""
        return {"precision": self.precision, "threads": self.threads, "batch_size": self.batch_size}


class Timed(NamedTuple):
    """Milliseconds per candidate of every round, and how many candidates a batch had."""

    adapter: list[float]
    forward: list[float]
    batch_size: int
    parameters: int


def measure_blip(folder: Path, options: Options) -> Timed:
    """BLIP-ITM base, ViT-B/16 at 384 pixels, on photos of 640 x 480."""
    import torch
    import transformers

    model = _save(transformers.BlipForImageTextRetrieval(_blip_config()), folder)
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")  # all of it BLIP's default
    reranker = BlipReranker(
        "blip",
        folder,
        device="cpu",
        **options.of_adapter,
    )
    candidates = [
        RerankCandidate(number, "image", None, _draw_photo(folder / f"{number}.jpg", number))
        for number in range(options.pictures)
    ]
    pixels = [
        reranker.preprocess(load_image(candidate.path.read_bytes(), target=reranker.image_size).image)
        for candidate in candidates
        if candidate.path
    ]
    ids = transformers.AutoTokenizer.from_pretrained(folder)(QUERY, return_tensors="pt").input_ids
    batches = []
    for start in range(0, len(pixels), reranker.batch_size):
        stack = torch.from_numpy(np.stack(pixels[start : start + reranker.batch_size]))
        expanded = ids.expand(len(stack), -1)
        batches.append({"pixel_values": stack, "input_ids": expanded, "attention_mask": torch.ones_like(expanded)})
    return _timed(reranker, candidates, model, batches, options)


def measure_bert(folder: Path, options: Options) -> Timed:
    """A cross-encoder on BERT-base, on texts of 8 to 60 words."""
    return _measure_texts(folder, options, _BERT)


def measure_minilm(folder: Path, options: Options) -> Timed:
    """A cross-encoder as ms-marco-MiniLM-L6, on texts of 8 to 60 words."""
    return _measure_texts(folder, options, _MINILM)


def _measure_texts(folder: Path, options: Options, shape: dict[str, int]) -> Timed:
    import transformers

    config = transformers.BertConfig(**shape, vocab_size=30522, num_labels=1)
    model = _save(transformers.BertForSequenceClassification(config), folder)
    reranker = CrossEncoderReranker(
        "bert",
        folder,
        device="cpu",
        **options.of_adapter,
    )
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(WORDS[5:], random.integers(8, 61))) for _ in range(options.texts)]
    candidates = [RerankCandidate(number, "text", text, None) for number, text in enumerate(texts)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ordered = sorted(texts, key=len)  # the order that makes the same batches
    batches = [
        dict(tokenizer([QUERY] * len(batch), batch, padding=True, return_tensors="pt"))
        for start in range(0, len(ordered), reranker.batch_size)
        for batch in [ordered[start : start + reranker.batch_size]]
    ]
    return _timed(reranker, candidates, model, batches, options)


MODELS: dict[str, Callable[[Path, Options], Timed]] = {
    "blip": measure_blip,
    "bert": measure_bert,
    "minilm": measure_minilm,
}


def _blip_config() -> Any:
    import transformers

    text = {**_BERT, "vocab_size": 30524, "encoder_hidden_size": 768, "pad_token_id": 0, "bos_token_id": 30522}
    vision = {**_BERT, "image_size": 384, "patch_size": 16}
    return transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)


def _save(model: Any, folder: Path) -> Any:
    """The model, ready to be called, and its folder as the hub would have it."""
    import transformers
    from tokenizers import BertWordPieceTokenizer

    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    pieces = BertWordPieceTokenizer({word: place for place, word in enumerate(WORDS)})
    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **marks).save_pretrained(folder)
    return model.eval()


def _draw_photo(path: Path, seed: int) -> Path:
    """A soft random pattern, which takes as long to decode as a photo of its size."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def _timed(
    reranker: BlipReranker | CrossEncoderReranker,
    candidates: Sequence[RerankCandidate],
    model: Any,
    batches: Sequence[dict[str, Any]],
    options: Options,
) -> Timed:
    """The adapter and the bare model by turns; both must give the same scores, or their times would not compare."""
    import torch

    lower = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    def forward() -> list[Any]:
        with torch.inference_mode(), lower:
            outputs = [model(**batch) for batch in batches]
        return [output.itm_score if hasattr(output, "itm_score") else output.logits for output in outputs]

    def mine() -> float:
        start = time.perf_counter()
        reranker.score(QUERY, candidates)
        return 1000 * (time.perf_counter() - start) / len(candidates)

    def bare() -> float:
        start = time.perf_counter()
        forward()
        return 1000 * (time.perf_counter() - start) / len(candidates)

    _compare(reranker.score(QUERY, candidates), torch.cat(forward()).float().numpy(), options.precision)
    found = alternate(options.rounds, {"adapter": mine, "forward": bare})
    parameters = sum(weights.numel() for weights in model.parameters())
    return Timed(found["adapter"], found["forward"], reranker.batch_size, parameters)


def _compare(scores: NDArray[np.float32], outputs: NDArray[np.float32], precision: str) -> None:
    expected = outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]
    tolerance = 1e-3 if precision == "fp32" else 0.1
    if not np.allclose(np.sort(scores), np.sort(expected), atol=tolerance):
        raise SystemExit("the adapter's scores are not those of the model; the benchmark is wrong")


def speed(name: str, options: Options) -> Figure:
    """Milliseconds per candidate of an adapter / of the bare forward at the same batch."""
    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        timed = MODELS[name](Path(folder), options)
    return Figure(
        name=name,
        what=(MODELS[name].__doc__ or "").rstrip("."),
        value=ratio(timed.adapter, timed.forward),
        bound="<=",
        target=1.1,
        seconds={"adapter": timed.adapter, "forward": timed.forward},
        notes={
            "unit": "ms per candidate",
            "ms per candidate": round(statistics.median(timed.adapter), 2),
            "batch": timed.batch_size,
            "million parameters": round(timed.parameters / 1e6, 1),
        },
    )


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--pictures", type=int, default=8, help="candidates of a reranker of pictures")
    parser.add_argument("--texts", type=int, default=48, help="candidates of a reranker of texts")
    parser.add_argument("--batch-size", type=int, metavar="N", help="candidates per call; the adapter's own without it")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="processor threads")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    where_it_ran = describe()
    import_torchvision()
    options = Options(
        arguments.rounds,
        arguments.pictures,
        arguments.texts,
        arguments.threads,
        arguments.precision,
        arguments.batch_size,
    )
    figures = [speed(name, options) for name in arguments.only]
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/rerank.py", *(argv if argv is not None else sys.argv[1:])]
        write_result(arguments.out, "rerank", command, where_it_ran, {"options": options._asdict()}, figures)


if __name__ == "__main__":
    main()
