"""Groups of tools/benchmark.py: models of like cost, the whole zoo among them."""

from functools import cache

import pytest
import timm
from benchmark_suite import GROUPS, batch_of, cells

import asvit_plugin
from asvit_plugin.costs import macs, params


@cache
def costs(name: str) -> tuple[int, int]:
    """Parameters and MACs at 224 px."""
    try:
        model = timm.create_model(name, device="meta", img_size=224)
    except TypeError:
        model = timm.create_model(name, device="meta")
    return params(model), macs(model, (3, 224, 224))


@pytest.mark.parametrize("group", GROUPS)
def test_models_of_a_group_cost_alike(group: str) -> None:
    billions = [costs(name)[1] / 1e9 for name in GROUPS[group]]
    assert max(billions) < 3 * min(billions)
    assert min(billions) < float(group.removesuffix("G")) < 1.1 * max(billions)


def test_models_stand_in_one_group_and_peers_are_timms() -> None:
    names = [name for models in GROUPS.values() for name in models]
    assert len(set(names)) == len(names)
    assert not {models[-1] for models in GROUPS.values()} & set(asvit_plugin.list_models())


def test_every_model_of_the_zoo_or_one_of_its_costs_is_in_a_group() -> None:
    ours = asvit_plugin.list_models()
    shown = {name for models in GROUPS.values() for name in models} & set(ours)
    known = {costs(name) for name in shown}
    assert [name for name in ours if name not in shown and costs(name) not in known] == []


def test_order_of_cells() -> None:
    found = cells({"a": ["x", "y"], "b": ["z"]}, [512, 224, 512], ["forward", "training"], ["eager"])
    order = [(cell.step, cell.img_size, cell.group) for cell in found]
    assert order == [
        (step, size, group) for step in ("forward", "training") for size in (224, 512) for group in ("a", "b")
    ]
    assert {cell.batch for cell in cells({"a": ["x"]}, [224, 512], ["forward"], ["eager"], batch=4)} == {4}


@pytest.mark.parametrize("img_size, batch", [(112, 32), (224, 8), (384, 3), (512, 2), (1024, 1), (4096, 1)])
def test_batches_hold_about_as_many_pixels(img_size: int, batch: int) -> None:
    assert batch_of(img_size) == batch
