"""A table of finished runs of train_net.py with yacs configs: trunk, its cost, AP, seconds per iteration.

    python detection/compare_runs.py output/tiny_mask_rcnn_* --results docs/results/tiny_detectors.json

Runs of one config with other seeds stand in one row, as mean ± standard deviation.
"""

import argparse
import importlib.util
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from mistakes import MISSING, exit_with, first_line

from asvit_plugin.atomic import write_atomically

SCORES = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")
HEADER = ("trunk", "parameters", "MACs", "box AP", "box AP50", "mask AP", "mask AP50", "s / iteration")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compares from the command line; gives one dictionary for each run."""
    if importlib.util.find_spec("detectron2") is None:
        exit_with(MISSING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--results", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        results = [read_run(folder) for folder in args.runs]
    except ValueError as error:
        exit_with(first_line(error))
    print(table(results))
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.results, lambda file: file.write((json.dumps(results, indent=1) + "\n").encode()))
    return results


def read_run(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it.

    Raises:
        ValueError: It holds no finished run.
    """
    rows = _rows(folder / "metrics.json")
    scores = next((row for row in reversed(rows) if "bbox/AP" in row), None)
    if scores is None or not (folder / "config.yaml").is_file():
        raise ValueError(f"runs holds {str(folder)!r}; it must be the output folder of a finished run of train_net.py")
    return {
        **_describe(folder / "config.yaml"),
        "iterations": scores["iteration"],
        **{name: round(scores[name], 2) for name in SCORES if name in scores},
        "seconds_per_iteration": _median([row["time"] for row in rows if "time" in row]),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a row for each trunk in the order of the runs."""
    groups = defaultdict(list)
    for result in results:
        groups[result["trunk"], result["trunk_parameters"], result["trunk_macs"]].append(result)
    lines = [HEADER, ["---"] * len(HEADER)]
    for (trunk, parameters, macs), runs in groups.items():
        measured = [_mean([run.get(name) for run in runs]) for name in SCORES]
        seconds = _mean([run["seconds_per_iteration"] for run in runs], digits=2)
        lines.append([trunk, f"{parameters / 1e6:.2f} M", f"{macs / 1e6:.0f} M", *measured, seconds])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _describe(config: Path) -> dict[str, Any]:
    """The trunk of a run, and what it costs at the size of its images."""
    from detection_config import add_detection_config
    from detectron2.config import get_cfg
    from yacs_runs import make_model

    from asvit_plugin.backbones import FeatureTrunk
    from asvit_plugin.costs import macs, params

    cfg = get_cfg()
    add_detection_config(cfg)
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = "cpu"
    backbone = make_model(cfg).backbone
    trunk = getattr(backbone, "bottom_up", None) or getattr(backbone, "net", backbone)
    name = trunk.recipe.name if isinstance(trunk, FeatureTrunk) else f"detectron2's {type(trunk).__name__}"
    size = cfg.INPUT.MIN_SIZE_TEST
    return {
        "trunk": name,
        "trunk_parameters": params(trunk),
        "trunk_macs": macs(trunk, (3, size, size)),
        "image_size": size,
        "seed": cfg.SEED,
    }


def _median(values: list[float]) -> float | None:
    """None for a run of fewer iterations than detectron2 leaves out of its times."""
    return round(statistics.median(values), 3) if values else None


def _mean(values: list[float | None], digits: int = 1) -> str:
    if None in values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
