"""Runs train_net.py's work in two CPU processes: detectron2's launcher, gloo, DistributedDataParallel.

train_net.py itself takes several processes for several GPUs only, as detectron2 wraps models for GPUs.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "detection"))

import train_net
from datasets_config import check_datasets
from detection_config import load_config
from detectron2.engine import default_argument_parser, launch


def run(cfg, args) -> None:
    import lazy_runs
    from detectron2.engine import defaults

    on_cpu = functools.partial(defaults.create_ddp_model, device_ids=None)
    defaults.create_ddp_model = lazy_runs.create_ddp_model = on_cpu
    train_net.run(cfg, args, [])


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    cfg = load_config(args)
    check_datasets(cfg)
    launch(run, 2, dist_url="auto", args=(cfg, args))
