"""What a model costs."""

from .analytic import ViTShape
from .counted import cost_table, macs, params

__all__ = ["ViTShape", "cost_table", "macs", "params"]
