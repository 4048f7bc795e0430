"""Trains and evaluates detectors with timm backbones, by detectron2's yacs configs (.yaml) and LazyConfigs (.py) alike.

    python detection/train_net.py --config-file detection/configs/tiny/mask_rcnn_as_vit.yaml
    python detection/train_net.py --config-file detection/configs/mask_rcnn_as_vit_small.yaml --num-gpus 8 \
        DATASETS.TRAIN_JSON my/train.json DATASETS.TRAIN_IMAGES my/train MODEL.ROI_HEADS.NUM_CLASSES 3
    python detection/train_net.py --config-file detection/configs/mask_rcnn_as_vit_small.py --resume train.max_iter=1000

The flags are those of detectron2's own scripts. What is wrong with the command line, the config or the data is said in
one sentence, with exit status 2.
"""

import argparse
import importlib.util
from typing import Any

from mistakes import MISSING, DataError, exit_with, expect_mistakes, first_line


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs training or evaluation from the command line.

    Args:
        argv: Command line without the program; None takes it from the process.

    Returns:
        The last results, in a run of one process.
    """
    if importlib.util.find_spec("detectron2") is None:
        exit_with(MISSING)
    from datasets_config import check_datasets
    from detection_config import load_config
    from detectron2.engine import default_argument_parser, launch
    from torch.multiprocessing import ProcessExitedException

    args = default_argument_parser().parse_args(argv)
    try:
        cfg = load_config(args)
        _check_processes(args)
        check_datasets(cfg, training=not args.eval_only)
    except ValueError as error:
        exit_with(first_line(error))
    results: list[dict[str, Any]] = []
    processes = dict(num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url)
    try:
        launch(run, args.num_gpus, args=(cfg, args, results), **processes)
    except ProcessExitedException as error:  # it has said why
        raise SystemExit(error.exit_code) from None
    return results[0] if results else None


def run(cfg: Any, args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """One process of a run; its results are appended."""
    from datasets_config import register_splits
    from detectron2.engine import default_setup
    from runs import runs_of

    runs = runs_of(cfg)
    try:
        register_splits(cfg)
        default_setup(cfg, args)
        expect_mistakes()
        if args.eval_only:
            results.append(runs.evaluate(cfg, args))
            return
        trainer = runs.start_training(cfg, args)
    except ValueError as error:
        exit_with(first_line(error))
    try:
        results.append(runs.finish_training(trainer))
    except (DataError, FloatingPointError) as error:
        exit_with(first_line(error))


def _check_processes(args: argparse.Namespace) -> None:
    """ValueError for more processes than GPUs; on the CPU, one trains."""
    import torch

    gpus = torch.cuda.device_count()
    if args.num_gpus * args.num_machines > 1 and args.num_gpus > gpus:
        raise ValueError(f"--num-gpus is {args.num_gpus}; this machine has {gpus}, and without GPUs one process trains")


if __name__ == "__main__":
    main()
