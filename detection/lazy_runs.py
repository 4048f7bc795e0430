"""Training and evaluation by a LazyConfig: the same parts as for yacs, around detectron2's simple trainers."""

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from detection_config import DTYPES
from detectron2.config import LazyCall
from detectron2.config import instantiate as instantiate_anything
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from mistakes import first_line
from omegaconf import DictConfig
from parts import ClipGradients, NamingMapper, RunCheckpointer, check_weights, load_for_evaluation, missing_map
from schedules_config import make_schedules
from torch import nn

from asvit_plugin.hooks.detectron2_hook import ScheduleHook


def instantiate(node: DictConfig) -> Any:
    """detectron2's, which tells of a misspelt argument by a TypeError from inside.

    Raises:
        ValueError: A call in the config has an argument that it does not take.
    """
    try:
        return instantiate_anything(node)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"a call in the config has an argument too many: {first_line(error)}") from error


class LazyTrainer:
    """A LazyConfig's model, data, optimizer and hooks, at iteration 0 or that of the last checkpoint.

    Args:
        cfg: The config.
        resume: Go on from the last checkpoint, if there is one.
    """

    def __init__(self, cfg: DictConfig, resume: bool) -> None:
        self.cfg = cfg
        model = make_model(cfg)
        optimizer = make_optimizer(cfg, model)
        self.schedules = make_schedules(cfg, model)
        self.model = create_ddp_model(model, **cfg.train.ddp)
        self.trainer = self._make_trainer(optimizer)
        self.checkpointer = RunCheckpointer(self.model, cfg.train.output_dir, trainer=self.trainer)
        self.results: dict[str, Any] = {}
        self.trainer.register_hooks(self._make_hooks())
        self.checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
        going_on = resume and self.checkpointer.has_checkpoint()
        self.start_iter = self.trainer.iter + 1 if going_on else 0  # a checkpoint has the iteration that has just ended

    def train(self) -> dict[str, Any]:
        """Train to the end, and give the last results."""
        self.trainer.train(self.start_iter, self.cfg.train.max_iter)
        return self.results

    def _make_trainer(self, optimizer: torch.optim.Optimizer) -> SimpleTrainer:
        loader = instantiate(naming(self.cfg.dataloader.train))
        _, precision = device_and_precision(self.cfg)
        if precision is None:
            return SimpleTrainer(self.model, loader, optimizer)
        return AMPTrainer(self.model, loader, optimizer, precision=precision)

    def _make_hooks(self) -> list[hooks.HookBase | None]:
        """The schedules come first: the last evaluation then sees their end."""
        train = self.cfg.train
        main = comm.is_main_process()
        writers = default_writers(str(train.output_dir), train.max_iter) if main else []
        return [
            ScheduleHook(self.schedules) if self.schedules else None,
            ClipGradients(train.clip_norm) if train.clip_norm else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(self.cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(self.checkpointer, **train.checkpointer) if main else None,
            hooks.EvalHook(train.eval_period, self._evaluate),
            hooks.PeriodicWriter(writers, period=train.log_period) if main else None,
        ]

    def _evaluate(self) -> dict[str, Any]:
        self.results = test(self.cfg, self.model)
        return self.results


def naming(loader: DictConfig) -> DictConfig:
    """A loader's config whose mapper says which image it failed at."""
    if "mapper" not in loader or loader.mapper.get("_target_", None) is NamingMapper:
        return loader
    loader = loader.copy()
    loader.mapper = LazyCall(NamingMapper)(mapper=loader.mapper)
    return loader


def test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Results of a model, if the config has an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return {}
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, make_test_loader(cfg), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def device_and_precision(cfg: DictConfig) -> tuple[str, torch.dtype | None]:
    """The device, and what mixed precision computes in, if it is on."""
    return cfg.train.device, DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None


def count_classes(cfg: DictConfig) -> int:
    """Number of classes of the detector."""
    return cfg.model.roi_heads.num_classes if "roi_heads" in cfg.model else cfg.model.num_classes


def make_model(cfg: DictConfig) -> nn.Module:
    """The detector, on its device.

    Raises:
        ValueError: Proposals or heads take maps that the pyramid has not.
    """
    model = instantiate(cfg.model)
    parts = (getattr(model, name, None) for name in ("proposal_generator", "roi_heads"))
    taken = [getattr(part, "in_features", None) for part in parts] + [getattr(model, "head_in_features", None)]
    missing = [name for names in taken for name in names or () if name not in model.backbone.output_shape()]
    if missing:
        raise missing_map(missing[0], model.backbone)
    return model.to(cfg.train.device)


def make_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the config asks for."""
    cfg.optimizer.params.model = model
    return instantiate(cfg.optimizer)


def make_detector(cfg: DictConfig, resume: bool = False) -> nn.Module:
    """A detector with its weights, in the state that it was trained in."""
    model = make_model(cfg)
    load_for_evaluation(cfg, model, resume)
    return model.eval()


def test_name(cfg: DictConfig) -> str:
    """Name of the dataset that is evaluated."""
    return cfg.dataloader.test.dataset.names


def make_test_loader(cfg: DictConfig) -> Iterable[list[dict[str, Any]]]:
    """Images of that dataset."""
    return instantiate(naming(cfg.dataloader.test))


def evaluate(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Results of a checkpoint."""
    return test(cfg, create_ddp_model(make_detector(cfg, args.resume), **cfg.train.ddp))


def start_training(cfg: DictConfig, args: argparse.Namespace) -> LazyTrainer:
    """A trainer with all that it needs, at iteration 0 or that of the last checkpoint."""
    check_weights(cfg)
    return LazyTrainer(cfg, args.resume)


def finish_training(trainer: LazyTrainer) -> dict[str, Any]:
    """Trains to the end, and gives the last results."""
    return trainer.train()
