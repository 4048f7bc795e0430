"""Options of tools/mask_search.py: those of classification/train.py, and how gates learn."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "classification"))

from data_options import Counts, Names
from options import TrainOptions

from asvit_plugin.search.budget import Budget
from asvit_plugin.search.latency_terms import LATENCY
from asvit_plugin.search.mask_search import RANGES, MaskSearchSettings
from asvit_plugin.search.vit_space import PARTS

COSTS = ("macs", "params", "latency")
# What has no meaning with gates, or would need another net beside the gated one.
EXCLUDED = (
    *("compile", "model_ema", "grad_checkpointing", "freeze", "kd_model_name", "progressive_tokenization"),
    *("attention_switching", "train_img_sizes", "sandwich", "inplace_distillation"),
)


@dataclass
class MaskSearchOptions(TrainOptions):
    """Mask search.

    Args:
        macs: Budget of MACs of an image; this, `params` or `latency` is given.
        params: Budget of parameters.
        latency: Budget of milliseconds of an image on this device, by a table of measured blocks.
        budget_low: The least that the chosen net may cost, in the same unit; by default 0.975 of the budget.
        decide: What is decided of a plain `--model`: embed_dim, depth or exists, num_heads, mlp_hidden, token_stride.
        embed_dims: Widths to choose among; by default the half to the whole of the model's, in eighths.
        token_strides: Sub-sampling factors of the tokens to choose among.
        gate_share: Part of the training images that gates learn from, taken out of those of the weights.
        gate_passes: Times that gates go through their images in an epoch.
        gates_from: Part of the search before which gates stay as they are.
        temperature: Of the gates' draws at first.
        last_temperature: Of their last draws.
        hard_gates: Draw one option of each gate, with the gradients of the mixture; else the mixture.
        cost_weight: Of the logarithm of the expected cost above the budget, beside the gates' cross entropy.
        cost_ramp: Part of the search over which that weight rises from 0.
        gate_lr: Learning rate of the gates.
        samples: Nets that are drawn by the gates in the end, and judged beside the most probable one.
    """

    model: str = ""
    resume: str = "auto"
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    budget_low: float | None = None
    decide: Names | None = None
    embed_dims: Counts | None = None
    token_strides: Counts | None = None
    gate_share: float = 0.2
    gate_passes: int = 1
    gates_from: float = MaskSearchSettings.gates_from
    temperature: float = MaskSearchSettings.temperature
    last_temperature: float = MaskSearchSettings.last_temperature
    hard_gates: bool = MaskSearchSettings.hard
    cost_weight: float = MaskSearchSettings.cost_weight
    cost_ramp: float = MaskSearchSettings.cost_ramp
    gate_lr: float = MaskSearchSettings.gate_lr
    samples: int = 20

    def __post_init__(self) -> None:
        self._demand_one_net()
        if self.supernet and self.batch_size > 0:
            self.examples_per_arch = self.batch_size  # gates draw one net for a batch
        super().__post_init__()
        if sum(getattr(self, name) is not None for name in COSTS) != 1:
            raise ValueError("there must be one budget: --macs, --params or --latency")
        for name in (*COSTS, "budget_low"):
            self.demand(name, lambda value: value > 0, "a number above 0")
        for name, (allowed, sentence) in RANGES.items():
            self.demand(name, allowed, sentence)
        self.demand("gate_share", lambda value: 0 < value < 1, "between 0 and 1")
        self.demand("gate_passes", lambda value: value >= 1, "a whole number from 1 up")
        self.demand("samples", lambda value: value >= 0, "a whole number from 0 up")
        self.demand("decide", lambda value: bool(value) and set(value) <= set(PARTS), f"some of {', '.join(PARTS)}")
        self.settings, self.budget  # noqa: B018  (refuse what does not go together)
        for name in EXCLUDED:
            if getattr(self, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}; it does not go with a search by masks"
                )
        if self.amp and self.amp_dtype == "float16":
            raise ValueError("--amp-dtype is 'float16'; with a search by masks allowed is bfloat16")

    def _demand_one_net(self) -> None:
        """Raises ValueError unless a space or a plain model is given, and what is decided of the latter only."""
        if bool(self.supernet) == (self.model not in ("", "vit_resnas")):
            raise ValueError("there must be one net: --supernet SPACE, or the name of a plain ViT as --model")
        self.model = self.model or "vit_resnas"
        for name in ("decide", "embed_dims", "token_strides"):
            if self.supernet and getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is given; with --supernet the space says what is decided")
        for name, part in (("embed_dims", "embed_dim"), ("token_strides", "token_stride")):
            if self.decide is not None and part not in self.decide and getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is given; it needs {part} in --decide {self.decide}")

    @property
    def cost(self) -> str:
        """What is limited."""
        return next(name for name in COSTS if getattr(self, name) is not None)

    @property
    def settings(self) -> MaskSearchSettings:
        """How gates learn; latency in seconds."""
        unit = 1e-3 if self.cost == "latency" else 1.0
        low = None if self.budget_low is None else self.budget_low * unit
        same = {name: getattr(self, name) for name in RANGES}
        cost = LATENCY if self.cost == "latency" else self.cost
        return MaskSearchSettings(cost, getattr(self, self.cost) * unit, low, hard=self.hard_gates, **same)

    @property
    def budget(self) -> Budget:
        """What a net may cost, in the unit of its option."""
        return Budget(f"--{self.cost}", lambda choice: 0.0, getattr(self, self.cost), self.budget_low)

    @property
    def name(self) -> str:
        """Name of the search's folder."""
        return self.experiment or f"masks_{Path(self.supernet).stem or self.model}".replace("/", "_").replace(":", "_")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.output) / self.name

    def own(self) -> dict[str, Any]:
        """Those options that train.py has not."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TRAINING}

    def learning(self) -> dict[str, Any]:
        """Those of :meth:`own` that say what is learned, with the budget as it is meant."""
        own = {name: value for name, value in self.own().items() if name != "samples"}
        return own | {"budget_low": self.budget.low}

    def training(self) -> dict[str, Any]:
        """Those options that train.py has."""
        return {name: getattr(self, name) for name in _TRAINING}


_TRAINING = tuple(each.name for each in fields(TrainOptions))
