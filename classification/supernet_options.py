"""Options of training all nets of a space at once, in one supernet."""

from dataclasses import dataclass
from typing import Literal

from data_options import ModelOptions
from recipe_options import RecipeOptions

# What has no meaning with a supernet, or would need a net of its own.
EXCLUDED = ("compile", "pretrained", "pretrained_path", "progressive_tokenization", "attention_switching")
SHARING = ("examples_per_arch", "supernet_warmup_epochs", "supernet_mode", "sandwich", "inplace_distillation")


@dataclass
class SupernetOptions(RecipeOptions):
    """Supernet.

    Args:
        supernet: Train all nets of a space together, as parts of its largest net: the name of a space (with the model
            `vit_resnas`) or a YAML file. What is validated and exported is the largest net.
        examples_per_arch: Images of a batch that one net is trained with; each step draws batch size / this nets.
        supernet_warmup_epochs: Epochs over which smaller and smaller nets are let in, and heads and MLP units sorted by
            importance.
        supernet_mode: Compute the nets of a step with masks, or each with slices of the weights; `auto` times both at
            the start.
        sandwich: Train the largest and the smallest net in every step, beside those that are drawn.
        inplace_distillation: Let all but the largest net learn what the largest net says (needs `sandwich`).
    """

    supernet: str = ""
    examples_per_arch: int = 64
    supernet_warmup_epochs: int = 30
    supernet_mode: Literal["auto", "masks", "slices"] = "auto"
    sandwich: bool = False
    inplace_distillation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("examples_per_arch", lambda value: value >= 1, "a whole number from 1 up")
        self.demand("supernet_warmup_epochs", lambda value: value >= 0, "a whole number from 0 up")
        if self.supernet:
            self._demand_fit()
        for name in () if self.supernet else SHARING:
            if getattr(self, name) != getattr(SupernetOptions, name):
                raise ValueError(f"{_flag(name)} is {getattr(self, name)!r}; it needs a space: --supernet")

    def _demand_fit(self) -> None:
        """Raises ValueError for options that do not go with a supernet; its model is always the same."""
        if self.model not in ("vit_resnas", ModelOptions.model):
            raise ValueError(f"--model is {self.model!r}; with --supernet allowed is vit_resnas")
        self.model = "vit_resnas"
        if "network_def" in self.model_kwargs:
            raise ValueError("--model-kwargs.network_def is given; with --supernet the space says what the nets are")
        for name in EXCLUDED:
            if getattr(self, name):
                raise ValueError(f"{_flag(name)} is {getattr(self, name)!r}; it does not go with --supernet")
        if self.kd_tokens_weight:
            raise ValueError("--kd-tokens-weight is above 0; nets of several widths have no tokens to compare")
        sizes = self.train_batch_sizes or [self.batch_size]
        nets = 2 if self.sandwich else 1
        for size in sizes:
            if size % self.examples_per_arch or size // self.examples_per_arch < nets:
                raise ValueError(
                    f"--examples-per-arch is {self.examples_per_arch}; it must divide the batch of {size} images"
                    f"{', and leave two nets or more for --sandwich' if self.sandwich else ''}"
                )
        if self.inplace_distillation:
            self._demand_no_other_teacher()

    def _demand_no_other_teacher(self) -> None:
        if not self.sandwich:
            raise ValueError("--inplace-distillation is on; it needs --sandwich, which trains the largest net always")
        for name in ("bce_loss", "kd_model_name"):
            if getattr(self, name):
                raise ValueError(f"{_flag(name)} and --inplace-distillation are both given; give one of them")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
