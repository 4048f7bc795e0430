"""Training and evaluation by a yacs config: detectron2's DefaultTrainer with this project's parts."""

import argparse
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detection_config import DTYPES
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.modeling import Backbone, build_backbone
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from mistakes import first_line
from parts import NamingMapper, RunCheckpointer, check_weights, load_for_evaluation, make_evaluator, missing_map
from schedules_config import make_schedules
from torch import nn

from asvit_plugin.backbones import FeatureTrunk
from asvit_plugin.backbones.detectron2_optimizer import layer_decay_params
from asvit_plugin.hooks.detectron2_hook import ScheduleHook


class Trainer(DefaultTrainer):
    """detectron2's, with layer-wise learning rates, AdamW, schedules, and weights in timm's layout."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        if cfg.SOLVER.AMP.ENABLED:
            self._trainer.precision = DTYPES[cfg.SOLVER.AMP.DTYPE]

    def build_hooks(self) -> list[HookBase]:
        """detectron2's, behind the schedules: the last evaluation then sees their end."""
        self.checkpointer = RunCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.schedules = make_schedules(self.cfg, self.checkpointer.model)
        return [*([ScheduleHook(self.schedules)] if self.schedules else []), *super().build_hooks()]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """detectron2's, which tells of maps that do not fit by a KeyError or an AssertionError from inside.

        Raises:
            ValueError: Proposals or heads take maps that the pyramid has not, or anchors are of another number.
        """
        try:
            return super().build_model(cfg)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if name not in _maps_taken(cfg):
                raise
            raise missing_map(name, _pyramid(cfg)) from error
        except AssertionError as error:
            if "anchor generator" not in str(error):
                raise
            raise ValueError(f"MODEL.ANCHOR_GENERATOR does not fit the maps: {first_line(error)}") from error

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """``SOLVER.OPTIMIZER`` over detectron2's groups; of a timm trunk, layer by layer."""
        solver = cfg.SOLVER
        common = dict(base_lr=solver.BASE_LR, weight_decay_norm=solver.WEIGHT_DECAY_NORM)
        common |= dict(bias_lr_factor=solver.BIAS_LR_FACTOR, weight_decay_bias=solver.WEIGHT_DECAY_BIAS)
        if solver.LAYER_DECAY != 1 or has_layers(model):
            params = layer_decay_params(model, layer_decay=solver.LAYER_DECAY, **common)
        else:
            params = get_default_optimizer_params(model, **common)
        if solver.OPTIMIZER == "AdamW":
            optimizer = torch.optim.AdamW(params, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
        else:
            settings = dict(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, weight_decay=solver.WEIGHT_DECAY)
            optimizer = torch.optim.SGD(params, solver.BASE_LR, **settings)
        return maybe_add_gradient_clipping(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """detectron2's, which says where data cannot be read."""
        return build_detection_train_loader(cfg, mapper=NamingMapper(DatasetMapper(cfg, True)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """detectron2's, which says where data cannot be read."""
        return build_detection_test_loader(cfg, dataset_name, mapper=NamingMapper(DatasetMapper(cfg, False)))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO's."""
        return make_evaluator(dataset_name, cfg.OUTPUT_DIR)


def _maps_taken(cfg: CfgNode) -> set[str]:
    """Maps that any detector of the config would take."""
    nodes = (cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET)
    return {name for node in nodes for name in node.IN_FEATURES}


def _pyramid(cfg: CfgNode) -> Backbone:
    """The backbone without its weights."""
    cfg = cfg.clone()
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    with torch.device("meta"):
        return build_backbone(cfg)


def has_layers(model: nn.Module) -> bool:
    """Whether a detector has one trunk that says what its layers are."""
    trunks = [module for module in model.modules() if isinstance(module, FeatureTrunk)]
    return len(trunks) == 1 and hasattr(trunks[0].model, "group_matcher")


def device_and_precision(cfg: CfgNode) -> tuple[str, torch.dtype | None]:
    """The device, and what mixed precision computes in, if it is on."""
    return cfg.MODEL.DEVICE, DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None


def count_classes(cfg: CfgNode) -> int:
    """Number of classes of the detector."""
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    return cfg.MODEL.RETINANET.NUM_CLASSES if retinanet else cfg.MODEL.ROI_HEADS.NUM_CLASSES


def make_model(cfg: CfgNode) -> nn.Module:
    """The detector, on its device."""
    return Trainer.build_model(cfg)


def make_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the config asks for."""
    return Trainer.build_optimizer(cfg, model)


def make_detector(cfg: CfgNode, resume: bool = False) -> nn.Module:
    """A detector with its weights, in the state that it was trained in."""
    model = make_model(cfg)
    load_for_evaluation(cfg, model, resume)
    return model.eval()


def test_name(cfg: CfgNode) -> str:
    """Name of the first dataset that is evaluated."""
    return cfg.DATASETS.TEST[0]


def make_test_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Images of that dataset."""
    return Trainer.build_test_loader(cfg, test_name(cfg))


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Results of a checkpoint."""
    results = Trainer.test(cfg, make_detector(cfg, args.resume))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def start_training(cfg: CfgNode, args: argparse.Namespace) -> Trainer:
    """A trainer with all that it needs, at iteration 0 or that of the last checkpoint."""
    check_weights(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer


def finish_training(trainer: Trainer) -> dict[str, Any]:
    """Trains to the end, and gives the last results."""
    trainer.train()
    return getattr(trainer, "_last_eval_results", {})
