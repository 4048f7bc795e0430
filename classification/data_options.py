"""Options that training and validation share: the images and the model."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from holdout import Words, read_holdout
from timm.data import str_to_interp_mode

Numbers = list[float]
Counts = list[int]
Names = list[str]
FILTERS = "nearest, bilinear, bicubic or another filter of PIL"
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
        holdout: `per-class NUMBER` takes as many images of every class out of the training split, the same ones in
            every run, and holds those out instead of `val_split`; `share PART` takes a part of every class; a FILE
            lists them (JSON or a pickle: a dictionary
            from the folder name of each class to file names). `none` takes back what a recipe says.
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
    holdout: Words = field(default_factory=list)
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
        self.demand("interpolation", lambda value: not value or is_known(str_to_interp_mode, value), FILTERS)
        self.demand(
            "dataset",
            lambda value: not value or (value.partition("/")[0].lower() in READERS and value.partition("/")[2]),
            f"one of {', '.join(f'{reader}/NAME' for reader in READERS)}",
        )
        self.holdout = read_holdout(self.holdout)
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


def is_known(convert: Any, value: str) -> bool:
    """Whether timm understands this name."""
    try:
        convert(value)
    except (AssertionError, KeyError, ValueError):
        return False
    return True


def _is_finite(value: Any) -> bool:
    """Whether a number, or each one in a list, is finite; anything else is."""
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(each) for each in values if isinstance(each, float))
