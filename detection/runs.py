"""Which module runs a config."""

from types import ModuleType

from detection_config import Config, is_lazy


def runs_of(cfg: Config) -> ModuleType:
    """``yacs_runs`` or ``lazy_runs``: both have the same functions."""
    import lazy_runs
    import yacs_runs

    return lazy_runs if is_lazy(cfg) else yacs_runs
