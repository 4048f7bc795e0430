"""Reads a yacs (.yaml) or LazyConfig (.py) file with its overrides, and settles where to train.

``auto``, the device of this project's configs, is a GPU where there is one. Mixed precision is off on the CPU, for
which detectron2 has none.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from mistakes import first_line, remark
from nets_config import KWARGS, set_arguments, settle_nets
from omegaconf import DictConfig, OmegaConf

from asvit_plugin.backbones.detectron2_config import add_timm_config

Config = CfgNode | DictConfig
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
OPTIMIZERS = ("SGD", "AdamW")
LAZY_PARTS = ("model", "optimizer", "lr_multiplier", "dataloader", "train")
# What detectron2 and the scripts read from a LazyConfig's ``train``; checkpointer and ddp are arguments of its own.
TRAIN_DEFAULTS = dict(
    output_dir="output",
    init_checkpoint="",
    max_iter=90000,
    amp=dict(enabled=False, dtype="float16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=0,
    log_period=20,
    device="auto",
    seed=-1,
    cudnn_benchmark=False,
    float32_precision="",
    clip_norm=None,
    schedules=[],
    data=dict(train_json="", train_images="", test_json="", test_images=""),
)
_NOTHING = object()


def add_detection_config(cfg: CfgNode) -> None:
    """Add this project's entries to detectron2's: the trunk, the optimizer, the schedules and data by path."""
    add_timm_config(cfg)
    cfg.MODEL.DEVICE = "auto"  # a GPU where there is one; "cuda" insists
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "AdamW", with WEIGHT_DECAY and WEIGHT_DECAY_NORM
    cfg.SOLVER.LAYER_DECAY = 1.0  # factor of the learning rate from one layer of the trunk to the one before it
    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16"

    cfg.DATASETS.TRAIN_JSON = ""  # COCO's annotations; with TRAIN_IMAGES, they take the place of TRAIN
    cfg.DATASETS.TRAIN_IMAGES = ""  # folder of the images
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""

    node = CfgNode()
    node.PROGRESSIVE_TOKENIZATION = False
    node.PHASES = []  # [until, stride] or [until, stride, dilation] of each; empty for the paper's
    node.ATTENTION_SWITCHING = False  # of castled trunks, from softmax attention to linear attention
    node.BLEND_UNTIL = 0.3
    node.MASK_FROM = 0.3
    node.LINEAR_FROM = 0.8
    node.THRESHOLD = None  # None: max(0.02, 4 / tokens)
    cfg.SCHEDULES = node


def load_config(args: argparse.Namespace) -> Config:
    """The config that the command line names, with its overrides, nets by file, device and precision settled.

    Raises:
        ValueError: The file cannot be read, or an entry does not exist or is not allowed.
    """
    path = Path(args.config_file)
    if not args.config_file or path.suffix not in (".yaml", ".yml", ".py"):
        raise ValueError(f"--config-file is {args.config_file!r}; it must be a .yaml or a .py file")
    if not path.is_file():
        raise ValueError(f"--config-file is {args.config_file!r}; there is no such file")
    cfg = _load_lazy(path, args.opts or []) if path.suffix == ".py" else _load_yacs(path, args.opts or [])
    settle_nets(cfg)
    settle_device(cfg)
    return cfg


def is_lazy(cfg: Config) -> bool:
    """Whether a config is a LazyConfig."""
    return not isinstance(cfg, CfgNode)


def settle_device(cfg: Config) -> None:
    """Replace the device ``auto``, and turn mixed precision off on the CPU.

    Raises:
        ValueError: The config names a GPU, and there is none.
    """
    if is_lazy(cfg):
        node, key, entry, amp, enabled = cfg.train, "device", "train.device", cfg.train.amp, "enabled"
    else:
        node, key, entry, amp, enabled = cfg.MODEL, "DEVICE", "MODEL.DEVICE", cfg.SOLVER.AMP, "ENABLED"
    device = node[key]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{entry} is {device!r}; this machine has no GPU that torch can use, give auto or cpu")
    node[key] = device
    if device == "cpu" and amp[enabled]:
        remark("mixed precision is off, for detectron2 has it on GPUs only")
        amp[enabled] = False


def _load_yacs(path: Path, overrides: list[str]) -> CfgNode:
    cfg = get_cfg()
    add_detection_config(cfg)
    try:
        cfg.merge_from_file(str(path))
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--config-file {str(path)!r} is no config: {_plain(error)}") from error
    try:
        _override(cfg, overrides)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"an override does not fit the config: {_plain(error)}") from error
    _check_choice("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, OPTIMIZERS)
    _check_choice("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, tuple(DTYPES))
    return cfg


def _override(cfg: CfgNode, overrides: list[str]) -> None:
    """yacs's overrides, and arguments of the trunk's model."""
    pairs = list(zip(overrides[::2], overrides[1::2]))
    arguments = [pair for pair in pairs if pair[0] == KWARGS or pair[0].startswith(f"{KWARGS}.")]
    rest = [text for pair in pairs if pair not in arguments for text in pair]
    cfg.merge_from_list(rest + overrides[2 * len(pairs) :])  # where one is left over, yacs says so
    for entry, value in arguments:
        set_arguments(cfg.MODEL.TIMM, entry, value)


def _load_lazy(path: Path, overrides: list[str]) -> DictConfig:
    try:
        cfg = LazyConfig.load(str(path))
    except Exception as error:  # it is a program, and can fail in any way
        raise ValueError(f"--config-file {str(path)!r} is no config: {_plain(error)}") from error
    missing = [name for name in LAZY_PARTS if not isinstance(cfg, DictConfig) or name not in cfg]
    if missing:
        raise ValueError(f"--config-file {str(path)!r} lacks {missing[0]}; a LazyConfig has {', '.join(LAZY_PARTS)}")
    cfg.train = OmegaConf.merge(OmegaConf.create(TRAIN_DEFAULTS, flags={"allow_objects": True}), cfg.train)
    _check_overrides(cfg, overrides)
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:  # errors of three libraries
        raise ValueError(f"an override does not fit the config: {_plain(error)}") from error
    _check_choice("train.amp.dtype", cfg.train.amp.dtype, tuple(DTYPES))
    return cfg


def _check_overrides(cfg: DictConfig, overrides: list[str]) -> None:
    """detectron2 adds entries that are new without a word, so a misspelt one would change nothing.

    New arguments of what the config calls are none of these: a call refuses what it does not know.
    """
    for override in overrides:
        name, equals, _ = override.partition("=")
        if name[:1] in ("+", "~"):
            continue  # added or removed on purpose
        settled = name if name.startswith("train.") else name.rpartition(".")[0] or name
        if not equals or OmegaConf.select(cfg, settled, default=_NOTHING) is _NOTHING:
            raise ValueError(f"the override is {override!r}; it must be entry=value with an entry of the config")


def _check_choice(entry: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{entry} is {value!r}; it must be one of {', '.join(allowed)}")


def _plain(error: BaseException) -> str:
    """The first line of what a library says, without its quotes."""
    return first_line(error).strip("'\"")
