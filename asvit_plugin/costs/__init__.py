"""What a model costs."""

from .counted import cost_table, macs, params

__all__ = ["cost_table", "macs", "params"]
