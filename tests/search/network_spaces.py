"""A space of very small ViT-ResNAS nets, as text that a test may change, and what its nets cost and are worth."""

import math
from typing import Any

from asvit_plugin.search.budget import Budget, network_cost
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.space import Choice
from asvit_plugin.search.space_schema import parse_space

SMALL = """
model: vit_resnas
for_each: {block: [1, 2], stage: [1, 2]}
decisions:
  dim_1: [32, 24]
  dim_2: [64, 48]
  heads_{stage}_{block}: [3, 1, 2]
  mlp_{stage}_{block}: [64, 32]
  exists_{stage}_2: [1, 0]
arguments:
  network_def:
    join: ""
    of:
      - "((4, {dim_1}), (1, ({dim_1}, {heads_1_1}, 8), ({dim_1}, {mlp_1_1}), 1), "
      - "(1, ({dim_1}, {heads_1_2}, 8), ({dim_1}, {mlp_1_2}), {exists_1_2}), (3, {dim_1}, {dim_2}), "
      - "(1, ({dim_2}, {heads_2_1}, 16), ({dim_2}, {mlp_2_1}), 1), "
      - "(1, ({dim_2}, {heads_2_2}, 16), ({dim_2}, {mlp_2_2}), {exists_2_2}), (2, {dim_2}, 10))"
"""


def small(old: str = "", new: str = "") -> NetworkSpace:
    """The space with a part of its text replaced."""
    assert old in SMALL
    return NetworkSpace(parse_space(SMALL.replace(old, new), "small"))


def budget_of(networks: NetworkSpace, high: float, low: float | None = None) -> Budget:
    """MACs at 56 px."""
    return Budget("macs", network_cost(networks, "macs", 56, 1), high, low)


def accuracy(networks: NetworkSpace, choice: Choice) -> dict[str, Any]:
    """A smooth function of a net: some of its widths are worth more than others."""
    net, worth = networks.network(choice), 0.0
    for stage, (dim, blocks) in enumerate(zip(net.dims, net.stages)):
        worth += math.log(dim)
        for place, block in enumerate(blocks, start=2 * stage):
            if block.exists:
                attention, mlp = block.num_heads * block.head_dim / dim, block.mlp_hidden_dim / dim
                worth += math.sin(place) ** 2 * math.log(attention) + math.cos(place) ** 2 * math.log(mlp)
    return {"top1": worth}
