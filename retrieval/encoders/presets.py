"""The models that have a short name, as data. Importing this loads nothing else."""

from __future__ import annotations

from dataclasses import dataclass

ENGLISH = ("en",)
"""`Preset.languages` of a model that understands English only."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A model with a short name.

    Attributes:
        name: what users type.
        tag: open_clip's `ARCH/PRETRAINED`; None for the bundled starter.
        repo: the hub repository that holds the weights; None for the bundled starter.
        summary: one line for people who choose.
        languages: ISO 639 codes of the languages its texts may be in; `mul` stands for about a hundred.
        licence: SPDX identifier of the weights, or where to read their terms.
        download_bytes: size of the weights (float32, 4 bytes a parameter), rounded up to whole
            megabytes; 0 where nothing is downloaded.
        dim: width of the shared space; None where the bundled files say it.
        coco: published text-to-image success@1 on the 5,000 COCO test photos; None if unknown.
        flickr30k: the same on the 1,000 Flickr30k test photos.
        source: where `coco` and `flickr30k` were published.
        prompts: what it reads in place of a query of a word or two, `{}`; the mean of all is the query's vector. Empty
            where the words alone are not known to be worse.
        unspaced_prompts: the same for a query of one or two characters of a script without spaces.
    """

    name: str
    tag: str | None
    repo: str | None
    summary: str
    languages: tuple[str, ...]
    licence: str
    download_bytes: int
    dim: int | None
    coco: float | None = None
    flickr30k: float | None = None
    source: str = ""
    prompts: tuple[str, ...] = ()
    unspaced_prompts: tuple[str, ...] = ()

    @property
    def bundled(self) -> bool:
        """Whether its weights come with mmsearch."""
        return self.tag is None


STARTER = Preset(
    name="starter",
    tag=None,
    repo=None,
    summary="bundled: works at once and offline, English and Chinese, needs no torch",
    languages=("en", "zh"),
    licence="see its model card",
    download_bytes=0,
    dim=None,
    # It has learnt from captions, which are sentences. Measured by benchmarks/queries.py.
    prompts=("{}", "a photo of {}.", "{} in the picture."),
    unspaced_prompts=("{}", "{}。"),
)

_SIGLIP2 = "SigLIP 2, arXiv 2502.14786, table 1"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        STARTER,
        Preset(
            name="fast",
            tag="ViT-B-32-256/datacomp_s34b_b86k",
            repo="laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
            summary="English only, the smallest download",
            languages=ENGLISH,
            licence="MIT",
            download_bytes=606_000_000,
            dim=512,
            coco=0.399,
            flickr30k=0.649,
            source="open_clip docs/openclip_retrieval_results.csv",
        ),
        Preset(
            name="balanced",
            tag="ViT-B-32-SigLIP2-256/webli",
            repo="timm/ViT-B-32-SigLIP2-256",
            summary="about a hundred languages, as quick as `fast` on pictures, much better",
            languages=("mul",),
            licence="Apache-2.0",
            download_bytes=1_508_000_000,
            dim=768,
            coco=0.472,
            flickr30k=0.755,
            source=_SIGLIP2,
        ),
        Preset(
            name="best",
            tag="ViT-SO400M-16-SigLIP2-384/webli",
            repo="timm/ViT-SO400M-16-SigLIP2-384",
            summary="about a hundred languages, the best answers; wants a GPU",
            languages=("mul",),
            licence="Apache-2.0",
            download_bytes=4_545_000_000,
            dim=1152,
            coco=0.560,
            flickr30k=0.853,
            source=_SIGLIP2,
        ),
    )
}
"""Every preset by name, smallest first."""

AUTO = "auto"
"""The default model name: `balanced` where it is cached or may be downloaded, otherwise `starter`."""

AUTO_PRESET = PRESETS["balanced"]
"""What `auto` stands for where it can be had."""
