"""Options of the classification scripts: typed, named as timm's own training script names them, read with jsonargparse.

Every option can be given on the command line (`--drop-path 0.1` or `--drop_path 0.1`) and in a YAML file
(`--config recipe.yaml`, with underscores); what comes later on the command line wins.
"""

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from timm.data import str_to_interp_mode
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.optim import get_optimizer_info, list_optimizers

Numbers = list[float]
Counts = list[int]
Names = list[str]
FILTERS = "nearest, bilinear, bicubic or another filter of PIL"
# Options that do nothing without another one.
TEACHING = (
    *("kd_model_kwargs", "kd_pretrained_path", "kd_distill_type", "kd_temperature", "kd_tokens_weight"),
    *("task_loss_weight", "distill_loss_weight"),
)
SIZING = ("train_batch_sizes", "train_size_schedule", "train_size_schedule_spread", "train_size_random_mix")
MIXING = ("mixup_prob", "mixup_switch_prob", "mixup_mode")
READERS = ("hfds", "hfids", "tfds", "wds", "torch")


@dataclass
class DataOptions:
    """Images and how they are prepared.

    Args:
        data: `digits` (scikit-learn's 1,797 handwritten digits, nothing to download) or a folder with one sub-folder
            per split, holding one sub-folder of images per class.
        data_dir: The same folder under timm's name for it; wins over `data`. Root of `--dataset` where that needs one.
        dataset: One of timm's readers instead of folders: `hfds/NAME`, `hfids/NAME`, `tfds/NAME`, `wds/NAME`,
            `torch/NAME`.
        dataset_download: Let the reader download the data.
        class_map: File with one class name per line, which fixes the order of the classes.
        train_split: Name of the split to train on.
        val_split: Name of the held-out split.
        train_num_samples: Number of training images, for readers that cannot count them (webdataset).
        val_num_samples: Number of held-out images, for readers that cannot count them (webdataset).
        input_key: Name of the image field, for readers with named fields.
        target_key: Name of the label field, for readers with named fields.
        num_classes: Number of classes; by default what the data says, or else the model's own default.
        in_chans: Number of image channels, 1 (grey) or 3.
        img_size: Side of the square input in pixels; by default the model's own.
        crop_pct: Share of the resized image that validation crops out.
        mean: Channel means to subtract, in units of the full pixel range.
        std: Channel deviations to divide by, in units of the full pixel range.
        interpolation: How validation images are resized.
        batch_size: Images per step and process.
        validation_batch_size: Images per validation step and process; by default `batch_size`.
        workers: Loader processes per training process; 0 loads in the training process itself.
        pin_mem: Copy batches to the device from pinned memory.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, ...
        channels_last: Use the channels-last memory format.
        amp: Use automatic mixed precision.
        amp_dtype: Number format of mixed precision; `float16` is trained with loss scaling.
        model_kwargs: More keyword arguments of the model, e.g. `--model-kwargs.stem_stride 1`.
    """

    data: str = "digits"
    data_dir: str | None = None
    dataset: str = ""
    dataset_download: bool = False
    class_map: str = ""
    train_split: str = "train"
    val_split: str = "validation"
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    input_key: str | None = None
    target_key: str | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str = ""
    batch_size: int = 128
    validation_batch_size: int | None = None
    workers: int = 4
    pin_mem: bool = False
    device: str = "auto"
    channels_last: bool = False
    amp: bool = False
    amp_dtype: Literal["float16", "bfloat16"] = "float16"
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            self.demand(each.name, _is_finite, "finite numbers only")
        for name in ("batch_size", "validation_batch_size", "img_size", "num_classes"):
            self.demand(name, lambda value: value >= 1, "a whole number from 1 up")
        self.demand("workers", lambda value: value >= 0, "a whole number from 0 up")
        self.demand("in_chans", lambda value: value in (1, 3), "1 or 3")
        self.demand("crop_pct", lambda value: 0 < value <= 1, "above 0 and at most 1")
        self.demand("std", lambda value: all(v > 0 for v in value), "one or more numbers above 0")
        self.demand("interpolation", lambda value: not value or _known(str_to_interp_mode, value), FILTERS)
        self.demand(
            "dataset",
            lambda value: not value or (value.partition("/")[0].lower() in READERS and value.partition("/")[2]),
            f"one of {', '.join(f'{reader}/NAME' for reader in READERS)}",
        )
        self._demand_no_conflict()

    def _demand_no_conflict(self) -> None:
        """Raises ValueError if `model_kwargs` says what an option says, which the data would not know."""
        for name, value in self.model_kwargs.items():
            option = getattr(self, name) if name == "img_size" else None
            if name in ("num_classes", "in_chans") or option not in (None, value):
                raise ValueError(f"--model-kwargs.{name} is {value!r}; give --{name.replace('_', '-')} instead")

    def demand(self, name: str, allowed: Any, sentence: str) -> None:
        """Raises ValueError naming the option, its value and what is allowed, unless it is None or allowed."""
        value = getattr(self, name)
        if value is not None and not allowed(value):
            raise ValueError(f"--{name.replace('_', '-')} is {value!r}; allowed is {sentence}")


@dataclass
class ModelOptions(DataOptions):
    """Model.

    Args:
        model: Any timm model name; those of this package are among them. `local-dir:FOLDER` names an exported one.
        pretrained: Start from pretrained weights.
        pretrained_path: Where those are, instead of where timm has them: a file, a folder or `hf-hub:ID`. They are
            brought to the model's image size, channels and classes. Implies `pretrained`.
        drop: Dropout rate before the classifier.
        drop_path: Stochastic depth rate.
        gp: Global pooling of the classifier, e.g. `avg` or `token`.
        compile: Run the model through torch.compile.
    """

    model: str = "as_vit_small"
    pretrained: bool = False
    pretrained_path: str = ""
    drop: float | None = None
    drop_path: float | None = None
    gp: str | None = None
    compile: bool = False


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
            lambda value: value == "random" or _known(str_to_interp_mode, value),
            f"random, {FILTERS}",
        )
        self.demand(
            "aa",
            lambda value: not value or _known(_make_policy, value),
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


@dataclass
class TrainOptions(RecipeOptions):
    """Run.

    Args:
        seed: Seed of everything that is random; same seed, same run.
        output: Folder that holds experiments.
        experiment: Name of this run's folder in `output`; by default the model's name.
        resume: `auto` continues this experiment where it stopped (or starts it), a path continues that checkpoint.
        log_interval: Batches between two updates of the loss in the progress bar.
        tensorboard: Write TensorBoard logs.
    """

    seed: int = 42
    output: str = "output"
    experiment: str = ""
    resume: str = ""
    log_interval: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("log_interval", lambda value: value >= 1, "a whole number from 1 up")
        self.demand("seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 2**32 - 1")


@dataclass
class ValidateOptions(ModelOptions):
    """Checkpoint.

    Args:
        checkpoint: Weights to measure. One that train.py wrote knows its model and its data; other options given
            here win over what it knows.
        results_file: JSON file to write the measurements to.
        use_ema: Measure the averaged weights where the checkpoint has them, as training does.
    """

    model: str = ""
    checkpoint: str = ""
    results_file: str = ""
    use_ema: bool = True


def _default(name: str) -> Any:
    """What an option of a training is unless it is given."""
    each = next(each for each in fields(RecipeOptions) if each.name == name)
    return each.default if each.default_factory is MISSING else each.default_factory()


def _known(convert: Any, value: str) -> bool:
    """Whether timm understands this name."""
    try:
        convert(value)
    except (AssertionError, KeyError, ValueError):
        return False
    return True


def _make_policy(name: str) -> Any:
    """The augmentation policy of this name, which timm chooses by how the name begins."""
    if name.startswith("rand"):
        return rand_augment_transform(name, {})
    return augment_and_mix_transform(name, {}) if name.startswith("augmix") else auto_augment_transform(name, {})


def _is_finite(value: Any) -> bool:
    """Whether a number, or each one in a list, is finite; anything else is."""
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(each) for each in values if isinstance(each, float))
