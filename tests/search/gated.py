"""What the tests of gated nets share."""

import torch

from asvit_plugin.search.gated_net import GatedNet
from asvit_plugin.search.space import Choice


def settle(net: GatedNet, choice: Choice, how: str) -> None:
    """Take one net: by name ("fixed"), or by gates so sure that every draw is it."""
    if how == "fixed":
        net.gates.fix(choice)
        return
    with torch.no_grad():
        for name, gate in net.gates.items():
            gate.logits.fill_(-1e6)[gate.options.index(choice[name])] = 0
    net.gates.draw(temperature=1.0, hard=True, generator=torch.Generator().manual_seed(0))
    assert net.gates.present() == choice
