"""Datasets and loaders: timm's readers and transforms, and scikit-learn's digits through the same path."""

import io
from pathlib import Path

import numpy as np
import torch
from data_options import DataOptions
from holdout import split_off
from options import TrainOptions
from PIL import Image, ImageOps
from timm.data import ImageDataset, create_dataset, create_loader
from timm.data.auto_augment import NAME_TO_OP, posterize
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset, IterableDataset

DIGITS_STATISTICS = {"mean": [0.305], "std": [0.376]}


class ReaderDigits(Reader):
    """scikit-learn's 1,797 handwritten digits (8 x 8 pixels, 17 grey levels), as the files a timm dataset reads.

    Args:
        training: Whether to hold the fixed 80 % of the images to train on, or the other 20 %; both have equal shares
            of every class.
    """

    def __init__(self, training: bool) -> None:
        super().__init__()
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise ValueError("--data digits needs scikit-learn: pip install scikit-learn") from None
        images, labels = load_digits(return_X_y=True)
        indices = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)[not training]
        self.class_to_idx = {str(digit): digit for digit in range(10)}
        self.samples = [(_png(images[index].reshape(8, 8)), int(labels[index])) for index in sorted(indices)]

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        png, label = self.samples[index]
        return io.BytesIO(png), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{index}.png"


def _posterize(image: Image.Image, bits_to_keep: int, **options: object) -> Image.Image:
    """timm's posterize, keeping at least 1 bit."""
    return posterize(image, max(bits_to_keep, 1), **options)


def _refuses_zero_bits() -> bool:
    """Whether this Pillow cannot keep 0 bits of an image."""
    try:
        ImageOps.posterize(Image.new("L", (1, 1)), 0)
    except ValueError:
        return True
    return False


# Needed by timm 1.0.31 with Pillow 13 and later: timm asks for 0 bits at the end of its scale, which Pillow refuses.
if _refuses_zero_bits():
    NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeOriginal", "PosterizeIncreasing"), _posterize))


def open_dataset(options: DataOptions, training: bool) -> Dataset:
    """Opens the training or the held-out split; with `--holdout`, either part of the training split.

    Args:
        options: Names the data.
        training: Which of the two.

    Returns:
        A timm dataset without transforms.

    Raises:
        ValueError: The data is not there or cannot be read, or images cannot be held out of it.
    """
    if options.holdout:
        return split_off(_open_split(options, training=True), options.holdout, training)
    return _open_split(options, training)


def _open_split(options: DataOptions, training: bool) -> Dataset:
    """Opens a whole split."""
    root = options.data_dir or ("" if options.data == "digits" else options.data)
    if options.class_map and not any(Path(folder, options.class_map).is_file() for folder in ("", root)):
        raise ValueError(f"--class-map is {options.class_map!r}; allowed is the path of a file")
    mode = "L" if options.in_chans == 1 else "RGB"
    if not options.dataset and options.data_dir is None and options.data == "digits":
        return ImageDataset("", reader=ReaderDigits(training), input_img_mode=mode)
    split = options.train_split if training else options.val_split
    if not options.dataset:
        _check_folder(root, options)
    try:
        return create_dataset(
            options.dataset,
            root=root or None,
            split=split,
            is_training=training,
            class_map=options.class_map,
            download=options.dataset_download,
            batch_size=options.batch_size,
            input_img_mode=mode,
            num_samples=options.train_num_samples if training else options.val_num_samples,
            seed=getattr(options, "seed", 0),
            input_key=options.input_key,
            target_key=options.target_key,
        )
    except Exception as error:  # each reader brings a library with exceptions of its own
        raise ValueError(
            f"cannot read split {split!r} of {options.dataset or root!r}: {type(error).__name__} {error}"
        ) from error


def count_classes(options: DataOptions, *datasets: Dataset) -> int | None:
    """Number of classes that the options or else the data name; None if neither does.

    Raises:
        ValueError: The splits have different classes, or more than `--num-classes`.
    """
    tables = [getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) for dataset in datasets]
    tables = [table for table in tables if table]
    if any(set(table) != set(tables[0]) for table in tables):
        odd = sorted(set(tables[0]) ^ set(tables[-1]))
        raise ValueError(f"the training and held-out splits must have the same classes; not in both: {odd[:5]}")
    found = len(tables[0]) if tables else None
    if options.num_classes and found and found > options.num_classes:
        raise ValueError(f"--num-classes is {options.num_classes}; the data has {found} classes")
    return options.num_classes or found


def data_arguments(options: DataOptions) -> dict[str, object]:
    """The options that timm resolves the input size and the normalisation from, with the digits' own statistics."""
    names = ("in_chans", "img_size", "crop_pct", "mean", "std", "interpolation")
    arguments = {name: getattr(options, name) for name in names}
    if not options.dataset and options.data_dir is None and options.data == "digits":
        arguments |= {name: value for name, value in DIGITS_STATISTICS.items() if arguments[name] is None}
    return arguments


def make_train_loader(
    dataset: Dataset, data_config: dict[str, object], options: TrainOptions, device: torch.device, distributed: bool
) -> torch.utils.data.DataLoader:
    """Loader of augmented training batches, `(images, labels)` on the device.

    Raises:
        ValueError: There are fewer images than one batch holds, or they cannot be repeated.
    """
    if options.aug_repeats and (not distributed or isinstance(dataset, IterableDataset)):
        raise ValueError(
            f"--aug-repeats is {options.aug_repeats}; allowed is 0 in a single process and with datasets that stream"
        )
    without_test_crop = {key: value for key, value in data_config.items() if key not in ("crop_pct", "crop_mode")}
    if options.train_img_sizes and isinstance(dataset, IterableDataset):
        raise ValueError(f"--train-img-sizes is {options.train_img_sizes}; datasets that stream have one size only")
    loader = create_loader(
        dataset,
        **(without_test_crop | {"interpolation": options.train_interpolation}),
        is_training=True,
        batch_size=options.batch_size,
        no_aug=options.no_aug,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        auto_augment=options.aa,
        num_aug_repeats=options.aug_repeats,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        input_size_choices=options.train_img_sizes,
        batch_size_choices=options.train_batch_sizes,
        batch_choice_seed=options.seed,
        batch_choice_schedule=options.train_size_schedule,
        batch_schedule_epochs=options.epochs,
        batch_schedule_spread=options.train_size_schedule_spread,
        batch_schedule_random_mix=options.train_size_random_mix,
        **_common_arguments(options, device, distributed),
    )
    if len(loader) == 0:
        raise ValueError(
            f"--batch-size is {options.batch_size}; there are only {len(dataset)} training images"
            f"{' for all processes together' if distributed else ''}"
        )
    return loader


def make_eval_loader(
    dataset: Dataset,
    data_config: dict[str, object],
    options: DataOptions,
    device: torch.device,
    distributed: bool = False,
) -> torch.utils.data.DataLoader:
    """Loader of held-out batches in a fixed order, `(images, labels)` on the device."""
    return create_loader(
        dataset,
        **data_config,
        is_training=False,
        batch_size=options.validation_batch_size or options.batch_size,
        **_common_arguments(options, device, distributed),
    )


def _common_arguments(options: DataOptions, device: torch.device, distributed: bool) -> dict[str, object]:
    # Workers that outlive an epoch would carry random states over it, and a resumed run could not repeat them.
    return {
        "num_workers": options.workers,
        "pin_memory": options.pin_mem,
        "device": device,
        "distributed": distributed,
        "persistent_workers": False,
    }


def _check_folder(root: str, options: DataOptions) -> None:
    """timm falls back to the whole folder where a split is missing, which would validate on the training images."""
    folder = Path(root)
    if not folder.exists():
        raise ValueError(f"the data folder {root!r} does not exist")
    synonyms = {"train": ("training",), "validation": ("val", "valid", "eval", "evaluation")}
    for split in (options.train_split, *([] if options.holdout else [options.val_split])):
        if folder.is_dir() and not any((folder / name).is_dir() for name in (split, *synonyms.get(split, ()))):
            raise ValueError(f"the data folder {root!r} has no folder for the split {split!r}")


def _png(pixels: np.ndarray) -> bytes:
    """PNG file of an array of grey levels from 0 to 16."""
    file = io.BytesIO()
    Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(file, format="png")
    return file.getvalue()
