"""The code blocks of docs/schedules.md, run as they stand."""

from functools import partial
from pathlib import Path

import pytest
from doc_blocks import block, run_block
from hook_runs import ITERATIONS, Watch, make_model, state_of
from timm.utils import ModelEmaV3

PAGE = "schedules.md"


STRIDES = [16, 16, 16, 8, 8, 4, 4, 4, 4, 4]  # of ten iterations, in pixels


def test_loop() -> None:
    model, strides = make_model(), []
    ema = ModelEmaV3(model)
    run_block(
        PAGE,
        "A loop",
        model=model,
        ema=ema,
        epochs=4,
        start_epoch=1,
        train_one_epoch=lambda epoch: strides.append(state_of(model)[0]),
    )
    assert strides == [16, 4, 4]
    assert state_of(ema.module) == state_of(model) == (4, 1.0, 1.0)


def test_detectron2(tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")
    from test_detectron2_hook import OwnTrainer, config

    class Documented(run_block(PAGE, "detectron2")["Trainer"], OwnTrainer):
        pass

    trainer = Documented(config(tmp_path))
    watch = Watch(trainer.model.backbone)
    trainer.train()
    assert (trainer.start_iter, trainer.iter) == (0, ITERATIONS)
    check_all(watch)


def test_mmengine(tmp_path: Path) -> None:
    pytest.importorskip("mmengine.runner", reason="mmengine or OpenCV is not installed: see setup.cfg, openmmlab")
    from mmengine import Config
    from test_mmengine_hook import make_runner

    hooks = Config.fromstring(block(PAGE, "mmengine"), ".py").custom_hooks
    runner = make_runner(tmp_path, False, hooks)
    watch = Watch(runner.model.backbone.model)
    runner.train()
    check_all(watch)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore::UserWarning:lightning")
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: pip install 'asvit-plugin[lightning]'")
    from test_lightning_callback import Classifier, Loader, Trainer

    module = Classifier()
    watch = Watch(module.model)
    trainer = run_block(
        PAGE, "Lightning", Trainer=partial(Trainer, default_root_dir=tmp_path, logger=False, limit_val_batches=0)
    )["trainer"]
    trainer.fit(module, Loader())
    assert [state[0] for state in watch.trained] == STRIDES


def check_all(watch: Watch) -> None:
    assert [state[0] for state in watch.trained] == STRIDES
    assert len(set(watch.trained)) == 5
    assert watch.run().end[1:] == (1.0, 1.0)
