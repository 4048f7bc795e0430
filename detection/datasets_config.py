"""What a config, yacs or LazyConfig, says of its data: found, checked and put into the config."""

from coco_files import CocoSplit, CocoSummary, check_agreement, check_named, find_split, read_summary
from detection_config import Config, is_lazy
from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

Found = tuple[CocoSplit, CocoSummary]


def splits_of(cfg: Config) -> tuple[CocoSplit | None, CocoSplit | None]:
    """The splits for training and evaluation that are given by path."""
    if is_lazy(cfg):
        data = cfg.train.data
        train = find_split("train.data.train_json", data.train_json, data.train_images)
        return train, find_split("train.data.test_json", data.test_json, data.test_images)
    data = cfg.DATASETS
    train = find_split("DATASETS.TRAIN_JSON", data.TRAIN_JSON, data.TRAIN_IMAGES)
    return train, find_split("DATASETS.TEST_JSON", data.TEST_JSON, data.TEST_IMAGES)


def register_splits(cfg: Config) -> None:
    """Make data by path known to detectron2 in this process, and name it in the config."""
    train, test = splits_of(cfg)
    if is_lazy(cfg):
        for split, node in ((train, cfg.dataloader.train), (test, cfg.dataloader.test)):
            if split is not None:
                node.dataset.names = split.register()
        if test is not None and "evaluator" in cfg.dataloader:
            cfg.dataloader.evaluator.dataset_name = test.name
        return
    if train is not None:
        cfg.DATASETS.TRAIN = (train.register(),)
    if test is not None:
        cfg.DATASETS.TEST = (test.register(),)


def check_datasets(cfg: Config, training: bool = True) -> None:
    """Look at all data before anything is built from it; masks that are run lengths are noted in the config.

    Raises:
        ValueError: Data is missing or broken, or does not fit the model; the message names the file.
    """
    splits = splits_of(cfg) if training else (None, splits_of(cfg)[1])
    train, test = ((split, read_summary(split)) if split else None for split in splits)
    check_agreement(train, test)
    for found in (train, test):
        if found is not None:
            (_check_lazy if is_lazy(cfg) else _check_yacs)(cfg, found, found is train)
    for which, found in (("train", train), ("test", test)):
        needed = (which == "train") == training  # training may go without evaluation
        if found is None and (needed or which == "test"):
            _check_names(*_named(cfg, which), needed)


def _check_names(entry: str, names: tuple[str, ...], instead: str, needed: bool) -> None:
    if needed and not names:
        raise ValueError(f"{entry} is empty; give names there, or annotations by path in {instead}")
    check_named(entry, names, instead)


def _named(cfg: Config, which: str) -> tuple[str, tuple[str, ...], str]:
    """Entry, names, and what takes their place, of data for "train" or "test" that is given by name."""
    if not is_lazy(cfg):
        return f"DATASETS.{which.upper()}", tuple(cfg.DATASETS[which.upper()]), f"DATASETS.{which.upper()}_JSON"
    entry = f"dataloader.{which}.dataset.names"
    names = OmegaConf.select(cfg, entry, default=())
    return entry, (names,) if isinstance(names, str) else tuple(names), f"train.data.{which}_json"


def _check_yacs(cfg: CfgNode, found: Found, for_training: bool) -> None:
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    node, entry = (cfg.MODEL.RETINANET, "RETINANET") if retina else (cfg.MODEL.ROI_HEADS, "ROI_HEADS")
    _check_classes(f"MODEL.{entry}.NUM_CLASSES", node.NUM_CLASSES, found)
    if cfg.MODEL.MASK_ON and for_training:
        _check_masks("MODEL.MASK_ON is True", found)
        if found[1].run_lengths:
            cfg.INPUT.MASK_FORMAT = "bitmask"


def _check_lazy(cfg: DictConfig, found: Found, for_training: bool) -> None:
    for entry in ("model.num_classes", "model.roi_heads.num_classes"):
        classes = OmegaConf.select(cfg, entry, default=None)
        if classes is not None:
            _check_classes(entry, classes, found)
    mapper = cfg.dataloader.train.get("mapper", None)
    if for_training and mapper is not None and mapper.get("use_instance_mask", False):
        _check_masks("dataloader.train.mapper.use_instance_mask is True", found)
        if found[1].run_lengths:
            mapper.instance_mask_format = "bitmask"


def _check_classes(entry: str, classes: int, found: Found) -> None:
    split, summary = found
    if classes != len(summary.categories):
        raise ValueError(f"{entry} is {classes}; {split.json!r} has {len(summary.categories)} categories")


def _check_masks(demand: str, found: Found) -> None:
    split, summary = found
    if summary.unmasked is not None:
        raise ValueError(f"{demand}; annotation {summary.unmasked!r} of {split.json!r} has no segmentation")
