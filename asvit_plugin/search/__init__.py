"""Designing nets: spaces, training-free proxies, and searches as Optuna studies."""

from importlib import import_module
from typing import Any

from .distortion import length_distortion
from .ntk import ntk_condition
from .proxies import PROXIES, Proxy, macs, num_parameters
from .ranking import rank_sum
from .score import Score
from .space import Space
from .space_schema import list_spaces, load_space
from .spectrum import spectrum_entropy
from .synaptic import dss, synflow

# These need optuna, which the rest does without.
_SEARCHING = {
    "GrowthSettings": "growing",
    "Grown": "growing",
    "ReinforceSampler": "reinforce",
    "ReinforceSettings": "reinforce",
    "Topology": "topology",
    "TopologySettings": "topology",
    "grow": "growing",
    "open_study": "study",
    "search_topology": "topology",
}

__all__ = [
    "PROXIES",
    "Proxy",
    "Score",
    "Space",
    "dss",
    "length_distortion",
    "list_spaces",
    "load_space",
    "macs",
    "ntk_condition",
    "num_parameters",
    "rank_sum",
    "spectrum_entropy",
    "synflow",
    *_SEARCHING,
]


def __getattr__(name: str) -> Any:
    if name not in _SEARCHING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_SEARCHING[name]}", __name__)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "asvit_plugin":
            raise
        raise ModuleNotFoundError(f"searching needs {missing}: pip install 'asvit-plugin[search]'") from error
    return getattr(module, name)
