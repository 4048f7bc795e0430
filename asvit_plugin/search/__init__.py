"""Designing nets: spaces, training-free proxies, supernets, and searches as Optuna studies."""

from importlib import import_module
from typing import Any

from .architectures import Architectures
from .budget import Budget, network_cost
from .distortion import length_distortion
from .gated_net import GatedNet, gate_network
from .gated_vit import gate_vit
from .importance import reorder
from .mask_gates import Gates
from .network_space import NetworkSpace, load_network_space
from .ntk import ntk_condition
from .proxies import PROXIES, Proxy, macs, num_parameters
from .ranking import rank_sum
from .score import Score
from .space import Space
from .space_schema import list_spaces, load_space
from .spectrum import spectrum_entropy
from .supernet import SuperNet, make_supernet
from .synaptic import dss, synflow

# These need optuna, which the rest does without.
_SEARCHING = {
    "EvolutionSampler": "evolution",
    "EvolutionSettings": "evolution",
    "Evolved": "evolving",
    "EvolvingSettings": "evolving",
    "GrowthSettings": "growing",
    "Grown": "growing",
    "ReinforceSampler": "reinforce",
    "ReinforceSettings": "reinforce",
    "Topology": "topology",
    "TopologySettings": "topology",
    "Base": "scaling_bases",
    "Front": "scaling_front",
    "FrontSettings": "scaling_front",
    "Oracle": "scaling_oracle",
    "Scaled": "scaling",
    "ScalingSettings": "scaling",
    "Strategy": "scaling_strategy",
    "Target": "scaling_costs",
    "Timing": "scaling_costs",
    "apply_strategy": "scaling_transfer",
    "base_choice": "scaling_space",
    "evolve": "evolving",
    "factor_space": "scaling_space",
    "find_base": "scaling_bases",
    "fit_strategy": "scaling_strategy",
    "grow": "growing",
    "open_study": "study",
    "proxy_oracle": "scaling_oracle",
    "scale": "scaling",
    "scale_front": "scaling_front",
    "search_topology": "topology",
    "space_yaml": "scaling_space",
}

__all__ = [
    "PROXIES",
    "Architectures",
    "Budget",
    "GatedNet",
    "Gates",
    "NetworkSpace",
    "Proxy",
    "Score",
    "Space",
    "SuperNet",
    "dss",
    "gate_network",
    "gate_vit",
    "length_distortion",
    "list_spaces",
    "load_network_space",
    "load_space",
    "macs",
    "make_supernet",
    "network_cost",
    "ntk_condition",
    "num_parameters",
    "rank_sum",
    "reorder",
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
