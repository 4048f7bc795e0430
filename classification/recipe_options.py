"""Options of how a model is trained, named as timm's own training script names them."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from data_options import FILTERS, Counts, ModelOptions, Names, Numbers, is_known
from timm.data import str_to_interp_mode
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.optim import get_optimizer_info, list_optimizers

# Options that do nothing without another one.
TEACHING = (
    *("kd_model_kwargs", "kd_pretrained_path", "kd_distill_type", "kd_temperature", "kd_tokens_weight"),
    *("task_loss_weight", "distill_loss_weight"),
)
SIZING = ("train_batch_sizes", "train_size_schedule", "train_size_schedule_spread", "train_size_random_mix")
MIXING = ("mixup_prob", "mixup_switch_prob", "mixup_mode")


@dataclass
class RecipeOptions(ModelOptions):
    """Recipe: optimizer, learning rate, regularisation, progressive tokenization, attention switching.

    Args:
        initial_checkpoint: Weights to start from; they must cover the model completely.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        opt: Optimizer, by timm's name for it.
        opt_eps: Epsilon of the optimizer.
        opt_betas: Betas of the optimizer.
        opt_args: More keyword arguments of the optimizer.
        momentum: Momentum of optimizers that have one.
        weight_decay: Weight decay.
        layer_decay: Factor of the learning rate from each layer to the one before it.
        clip_grad: Largest gradient norm (or value, or AGC factor).
        clip_mode: What `clip_grad` limits.
        grad_accum_steps: Batches whose gradients are summed up for one update.
        lr: Peak learning rate, used as given (it is not scaled by the batch size).
        epochs: Epochs of the learning rate schedule.
        sched: Learning rate schedule.
        sched_on_updates: Change the learning rate after each update instead of each epoch.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate at the start of the warm-up.
        warmup_prefix: Put the warm-up before the schedule's `epochs` rather than inside them.
        cooldown_epochs: Epochs at `min_lr` after the schedule.
        min_lr: Lowest learning rate.
        decay_epochs: Interval of the `step` schedule, or length of the decay of `wsd`, in epochs.
        decay_milestones: Epochs at which `multistep` decays.
        decay_rate: Factor of the `step` and `multistep` schedules.
        no_aug: Train without any augmentation.
        scale: Range of the share of the image that a random crop covers.
        ratio: Range of the aspect ratio of a random crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of the colour jitter; not used together with `aa`.
        aa: AutoAugment or RandAugment policy, e.g. `rand-m9-mstd0.5-inc1`.
        aug_repeats: Repeated augmentation (distributed runs only).
        train_interpolation: How training images are resized; `random` mixes bilinear and bicubic.
        reprob: Probability of random erasing.
        remode: What random erasing fills in.
        recount: Number of erased rectangles.
        smoothing: Label smoothing.
        bce_loss: Binary instead of softmax cross entropy.
        bce_target_thresh: Threshold that makes mixed targets binary.
        mixup: Alpha of Mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.
        mixup_prob: Probability of mixing.
        mixup_switch_prob: Probability of CutMix where both are on.
        mixup_mode: Mix whole batches, pairs or single elements alike.
        mixup_off_epoch: Epoch from which on nothing is mixed; 0 is never.
        switch_token_mix: Mix half of each batch by whole patches and half by Mixup, with targets for every patch
            (ViT-ResNAS, whose `patch_head` learns them); `mixup` and `cutmix` are its alphas.
        model_ema: Keep an average of the weights; it is then what validation measures and what is exported.
        model_ema_decay: Decay of the average.
        model_ema_warmup: Let the decay grow from 0 at the start.
        dist_bn: How batch norm statistics are shared between processes after each epoch.
        sync_bn: Normalise over the batches of all processes together.
        freeze: Parts that are not trained and stay in evaluation mode: `stem`, `backbone` (all but the classifier: a
            linear probe), or names of modules such as `blocks.0`.
        kd_model_name: Teacher to distil from: any timm model, `local-dir:FOLDER` or `hf-hub:ID`, with its weights.
        kd_model_kwargs: More keyword arguments of the teacher.
        kd_pretrained_path: Where its weights are, as `pretrained_path`.
        kd_distill_type: What is learnt of its logits: the distribution, the likeliest class, or nothing. A model with
            a distillation head learns it there.
        kd_temperature: Temperature of `soft`.
        kd_tokens_weight: Weight of the difference between the tokens of both after every block; 0 leaves it out.
        task_loss_weight: Weight of the labels beside a teacher.
        distill_loss_weight: Weight of its logits; by default 1 - `task_loss_weight`.
        train_img_sizes: Sizes of training images, one for each batch by chance (timm's scheduled resolutions).
        train_batch_sizes: Images per step and process at each of those; by default `batch_size`.
        train_size_schedule: `progressive` goes from the first size to the last (timm's progressive resizing).
        train_size_schedule_spread: Width of that schedule's window, in sizes; 0 takes the nearest size alone.
        train_size_random_mix: Share of batches of any size in that schedule.
        progressive_tokenization: Start with few coarse tokens and refine them during training (As-ViT); by default on
            where phases are given.
        phases: Phases of it as `[[until, stride], ...]` or `[[until, stride, dilation], ...]`, `until` in parts of the
            training; by default the paper's.
        attention_switching: Take the attention of a castled model from softmax to linear during training.
        blend_until: Part of the training after which softmax attention takes no part by itself.
        mask_from: Part of the training after which the threshold of the softmax branch rises.
        linear_from: Part of the training after which attention is linear alone.
        mask_threshold: Where the threshold starts; by default max(0.02, 4 / tokens).
    """

    initial_checkpoint: str = ""
    grad_checkpointing: bool = False
    opt: str = "adamw"
    opt_eps: float | None = None
    opt_betas: Numbers | None = None
    opt_args: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = None
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    grad_accum_steps: int = 1
    lr: float = 1e-3
    epochs: int = 300
    # plateau is left out: its state is not a function of the epoch, which an exact resume relies on
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none"] = "cosine"
    sched_on_updates: bool = False
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    warmup_prefix: bool = False
    cooldown_epochs: int = 0
    min_lr: float = 1e-5
    decay_epochs: float | None = None
    decay_milestones: Numbers = field(default_factory=lambda: [90, 180, 270])
    decay_rate: float = 0.1
    no_aug: bool = False
    scale: Numbers = field(default_factory=lambda: [0.08, 1.0])
    ratio: Numbers = field(default_factory=lambda: [3 / 4, 4 / 3])
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    aa: str | None = None
    aug_repeats: int = 0
    train_interpolation: str = "random"
    reprob: float = 0.0
    remode: Literal["const", "rand", "pixel"] = "pixel"
    recount: int = 1
    smoothing: float = 0.1
    bce_loss: bool = False
    bce_target_thresh: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    mixup_off_epoch: int = 0
    switch_token_mix: bool = False
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    dist_bn: Literal["reduce", "broadcast", ""] = "reduce"
    sync_bn: bool = False
    freeze: Names = field(default_factory=list)
    kd_model_name: str = ""
    kd_model_kwargs: dict[str, Any] = field(default_factory=dict)
    kd_pretrained_path: str = ""
    kd_distill_type: Literal["soft", "hard", "none"] = "soft"
    kd_temperature: float = 1.0
    kd_tokens_weight: float = 0.0
    task_loss_weight: float = 0.5
    distill_loss_weight: float | None = None
    train_img_sizes: Counts | None = None
    train_batch_sizes: Counts | None = None
    train_size_schedule: Literal["constant", "progressive"] = "constant"
    train_size_schedule_spread: float = 0.65
    train_size_random_mix: float = 0.1
    progressive_tokenization: bool | None = None
    phases: list[list[int | float]] | None = None
    attention_switching: bool = False
    blend_until: float = 0.3
    mask_from: float = 0.3
    linear_from: float = 0.8
    mask_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "grad_accum_steps", "recount"):
            self.demand(name, lambda value: value >= 1, "a whole number from 1 up")
        for name in ("lr", "clip_grad", "layer_decay", "kd_temperature"):
            self.demand(name, lambda value: value > 0, "a number above 0")
        for name in (
            "weight_decay",
            "min_lr",
            "warmup_lr",
            "warmup_epochs",
            "cooldown_epochs",
            "mixup",
            "cutmix",
            "color_jitter",
            "aug_repeats",
            "mixup_off_epoch",
            "kd_tokens_weight",
            "task_loss_weight",
            "distill_loss_weight",
            "train_size_schedule_spread",
        ):
            self.demand(name, lambda value: value >= 0, "a number from 0 up")
        for name in ("smoothing", "drop", "drop_path", "model_ema_decay"):
            self.demand(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        for name in ("hflip", "vflip", "reprob", "mixup_prob", "mixup_switch_prob", "train_size_random_mix"):
            self.demand(name, lambda value: 0 <= value <= 1, "a probability from 0 to 1")
        self.demand("opt_betas", lambda value: len(value) >= 2, "two numbers")
        self.demand(
            "scale",
            lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1,
            "two rising numbers above 0 and at most 1",
        )
        self.demand("ratio", lambda value: len(value) == 2 and 0 < value[0] <= value[1], "two rising numbers above 0")
        self.demand(
            "train_interpolation",
            lambda value: value == "random" or is_known(str_to_interp_mode, value),
            f"random, {FILTERS}",
        )
        self.demand(
            "aa",
            lambda value: not value or is_known(_make_policy, value),
            "a policy of timm's, such as rand-m9-mstd0.5-inc1, augmix-m3 or original",
        )
        self.demand(
            "opt",
            lambda value: value.lower() in list_optimizers() and not get_optimizer_info(value.lower()).second_order,
            "a name in timm.optim.list_optimizers() that needs first derivatives only (not adahessian)",
        )
        for name in ("train_img_sizes", "train_batch_sizes"):
            self.demand(name, lambda value: bool(value) and min(value) >= 1, "whole numbers from 1 up")
        if (self.mixup or self.cutmix) and not self.switch_token_mix:
            even = "even numbers where --mixup or --cutmix is on"
            if self.train_batch_sizes:
                self.demand("train_batch_sizes", lambda value: all(size % 2 == 0 for size in value), even)
            else:
                self.demand("batch_size", lambda value: value % 2 == 0, even)
        if self.progressive_tokenization is None:
            self.progressive_tokenization = self.phases is not None
        self._demand_company()

    def _demand_company(self) -> None:
        """Raises ValueError for options that need another one, or exclude it."""
        if self.bce_loss and self.switch_token_mix:
            raise ValueError("--bce-loss and --switch-token-mix are both on; give one of them")
        if self.train_img_sizes and self.switch_token_mix:
            raise ValueError("--train-img-sizes and --switch-token-mix are both given; give one of them")
        if self.switch_token_mix and not (self.mixup or self.cutmix):
            raise ValueError("--switch-token-mix is on; it needs --mixup or --cutmix above 0")
        if self.pretrained_path and self.initial_checkpoint:
            raise ValueError("--pretrained-path and --initial-checkpoint are both given; give one of them")
        self._demand_change("kd_model_name", "a teacher: --kd-model-name", TEACHING)
        self._demand_change("train_img_sizes", "--train-img-sizes", SIZING)
        if self.switch_token_mix:
            for name in MIXING:
                if getattr(self, name) != _default(name):
                    raise ValueError(f"--{name.replace('_', '-')} has no effect with --switch-token-mix; leave it out")
        if self.kd_model_name and self.kd_distill_type == "none" and not self.kd_tokens_weight:
            raise ValueError("--kd-distill-type is 'none'; without --kd-tokens-weight nothing is learnt of the teacher")
        if self.train_img_sizes and self.progressive_tokenization:
            raise ValueError("--train-img-sizes and --progressive-tokenization are both given; give one of them")
        if self.train_img_sizes is None:
            return
        if len(self.train_batch_sizes or self.train_img_sizes) != len(self.train_img_sizes):
            raise ValueError("--train-batch-sizes and --train-img-sizes differ in length; give as many of both")
        if self.train_size_schedule == "progressive" and len(self.train_img_sizes) < 2:
            raise ValueError(f"--train-img-sizes is {self.train_img_sizes}; `progressive` needs two or more sizes")

    def _demand_change(self, needed: str, sentence: str, names: tuple[str, ...]) -> None:
        """Raises ValueError for options that were set in vain, because the one that they serve was not."""
        for name in names:
            if not getattr(self, needed) and getattr(self, name) != _default(name):
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)!r}; it needs {sentence}")


def _default(name: str) -> Any:
    """What an option of a training is unless it is given."""
    each = next(each for each in fields(RecipeOptions) if each.name == name)
    return each.default if each.default_factory is MISSING else each.default_factory()


def _make_policy(name: str) -> Any:
    """The augmentation policy of this name, which timm chooses by how the name begins."""
    if name.startswith("rand"):
        return rand_augment_transform(name, {})
    return augment_and_mix_transform(name, {}) if name.startswith("augmix") else auto_augment_transform(name, {})
