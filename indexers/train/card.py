"""The card of a fine-tuned model: what it was made from, how, and what that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsearch.indexers.train.settings import TrainReport, Tuning

_WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_HOW = {
    "full": "all layers were trained, and the table of words kept",
    "last": "the last blocks of both towers and their projections were trained",
    "probe": "a linear map after each tower was trained and folded into its last layer",
}


def model_card(report: TrainReport, tuning: Tuning) -> str:
    """The card as Markdown."""
    lines = [
        f"# {report.folder.name}",
        "",
        f"A fine-tuned `{report.base}` (identity `{report.base_identity}`), made by `mmsearch train`. "
        f"Use it as `--model local-dir:{report.folder}`; open_clip loads the folder too.",
        "",
        f"- {_HOW[report.how]}, on {report.pictures:,} pictures with {report.captions:,} different captions",
        f"- loss `{report.loss}`, {report.steps:,} updates, of which the weights of update {report.best_step:,} were "
        f"taken; seed {tuning.seed}; hard negatives per picture: {tuning.hard_negatives}",
        f"- {report.average:.0%} of these weights and {1 - report.average:.0%} of the base's",
        "",
    ]
    if report.after:
        lines += [
            f"On the {report.held_out:,} pictures that were held out, before and after. They also chose when to stop"
            + (" and how to average" if tuning.average is None else "")
            + ", so that the gain on other pictures may be smaller.",
            "",
            "| | success@1 | success@10 | MRR |",
            "| --- | --- | --- | --- |",
        ]
        for way, words in _WAYS.items():
            for when, measured in (("before", report.before), ("after", report.after)):
                one = measured[way]
                lines.append(
                    f"| {words}, {when} | {one['success@1']:.3f} | {one['success@10']:.3f} | {one['mrr']:.3f} |"
                )
        lines.append("")
    else:
        lines += ["Nothing was held out, so what it gained is not known.", ""]
    lines.append("The terms of the base model and of the pictures hold for these weights too.")
    return "\n".join(lines) + "\n"
