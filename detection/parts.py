"""Parts of a run that yacs and LazyConfig share: a mapper, checkpoints, gradients, evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detection_config import Config, is_lazy
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import Backbone
from mistakes import DataError, first_line
from schedules_config import make_schedules
from torch import nn

from asvit_plugin.atomic import write_atomically
from asvit_plugin.backbones import FeatureTrunk
from asvit_plugin.backbones.detectron2_checkpointer import TimmCheckpointer

_READING = (AssertionError, AttributeError, IndexError, KeyError, OSError, SyntaxError, TypeError, ValueError)


class NamingMapper:
    """A mapper that says which image it failed at.

    Args:
        mapper: detectron2's ``DatasetMapper``, or any other function of a dataset's entry.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, entry: dict[str, Any]) -> Any:
        """The entry, mapped.

        Raises:
            DataError: The image, or one of its annotations, cannot be read.
        """
        try:
            return self.mapper(entry)
        except _READING as error:
            name = entry.get("file_name", "an image")
            raise DataError(f"{name!r} or its annotations cannot be read: {first_line(error)}") from error


class RunCheckpointer(TimmCheckpointer):
    """The checkpointer of a run, in which a kill leaves a whole checkpoint.

    Checkpoints are new files, and which is the last is written behind them, at once. detectron2 reads what fits of a
    detector's checkpoint and warns of the rest; of a timm trunk, all has to fit.

    Attributes:
        evaluates: Refuse checkpoints without any weights of the trunk, too.
    """

    evaluates = False

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the last checkpoint's name."""
        path = Path(self.save_dir, "last_checkpoint")
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        path = next((path for path, module in self.model.named_modules() if isinstance(module, FeatureTrunk)), None)
        if path is not None:
            self._check_trunk(path + ".model.", found)
        return found

    def _check_trunk(self, prefix: str, found: Any) -> None:
        """ValueError unless a checkpoint has all of the trunk; or nothing of it, where training begins."""
        strange = [*found.unexpected_keys, *(name for name, *_ in found.incorrect_shapes)]
        strange = [name for name in strange if name.startswith(prefix)]
        missing = [name for name in found.missing_keys if name.startswith(prefix)]
        own = sum(name.startswith(prefix) for name in self.model.state_dict())
        if strange or (missing and (self.evaluates or len(missing) < own)):
            raise ValueError(
                f"the checkpoint is of a detector with another trunk: they differ in {(strange or missing)[0]!r}"
            )


class ClipGradients(HookBase):
    """Scales all gradients together down to a norm, also under mixed precision.

    Args:
        norm: The largest norm.
    """

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def after_backward(self) -> None:
        """Clip, in true units."""
        if hasattr(self.trainer, "grad_scaler"):
            self.trainer.grad_scaler.unscale_(self.trainer.optimizer)
        parameters = [each for group in self.trainer.optimizer.param_groups for each in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.norm)


def make_evaluator(name: str, output_dir: str) -> COCOEvaluator:
    """COCO's boxes and masks; detectron2 falls back to pycocotools' own code where its faster one is not built.

    Raises:
        ValueError: The dataset is evaluated in another way.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind != "coco":
        raise ValueError(
            f"DATASETS.TEST holds {name!r}, whose results are of kind {kind!r}; only COCO's are evaluated here"
        )
    return COCOEvaluator(name, output_dir=str(Path(output_dir, "inference")))


def missing_map(name: str, pyramid: Backbone) -> ValueError:
    """What is wrong where a detector asks for a map that its pyramid does not give."""
    offered = ", ".join(f"{each} (stride {shape.stride})" for each, shape in pyramid.output_shape().items())
    return ValueError(
        f"the detector takes the map {name!r}, and the pyramid over its trunk gives {offered}: in_features of "
        "proposals and heads must name some of these, with one list of anchor sizes each"
    )


def load_for_evaluation(cfg: Config, model: nn.Module, resume: bool) -> None:
    """Weights, and the schedules' state at the iteration that they are of, for a model that is evaluated only.

    Raises:
        ValueError: No weights are named, or they are not those of the model.
    """
    entry, weights = check_weights(cfg)
    folder = str(cfg.train.output_dir if is_lazy(cfg) else cfg.OUTPUT_DIR)
    checkpointer = RunCheckpointer(model, folder)
    checkpointer.evaluates = True
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    if not weights:
        raise ValueError(f"{entry} is empty; evaluation needs a checkpoint there, or --resume for one of {folder!r}")
    iteration = checkpointer.load(weights).get("iteration")
    iterations = cfg.train.max_iter if is_lazy(cfg) else cfg.SOLVER.MAX_ITER
    progress = 1.0 if iteration is None else min((iteration + 1) / iterations, 1.0)
    for schedule in make_schedules(cfg, model):
        schedule.step(progress)


def check_weights(cfg: Config) -> tuple[str, str]:
    """Name and value of the entry for weights.

    Raises:
        ValueError: It names a file that is not there.
    """
    entry, weights = (
        ("train.init_checkpoint", cfg.train.init_checkpoint) if is_lazy(cfg) else ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    )
    elsewhere = "://" in weights or weights.startswith("hf-hub:")
    if weights and not elsewhere and not Path(weights.partition("?")[0]).exists():
        raise ValueError(f"{entry} is {weights!r}; there is no such file")
    return entry, weights
