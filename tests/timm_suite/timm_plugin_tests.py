"""pytest plugin: timm's own ``tests/test_models.py`` over the models of other packages.

    pytest -p timm_plugin_tests <timm source>/tests/test_models.py

Environment:
    TIMM_PLUGIN_MODULES: Modules to import, comma separated; importing them registers their models.
    TIMM_PLUGIN_MODELS: Patterns of the model names to test; default: whatever the imports added.

test_models.py does ``from timm import list_models`` and calls it in decorators, so it is enough to replace
``timm.list_models`` before collection. Token models (``forward_features`` gives NLC) are tested with timm's
``test_model_default_cfgs_non_std``, models with a spatial feature map with ``test_model_default_cfgs``.
"""

import fnmatch
import importlib
import os
from collections.abc import Sequence
from typing import Any

import pytest
import timm

MARKERS = ("base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features", "fxforward", "fxbackward")


def _patterns(variable: str) -> list[str]:
    return [pattern for pattern in os.environ.get(variable, "").split(",") if pattern]


def _gives_tokens(name: str) -> bool:
    """Whether ``forward_features`` gives (B, tokens, C) and not a map."""
    model = timm.create_model(name, device="meta")
    return getattr(model, "output_fmt", "NLC") not in ("NCHW", "NHWC")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: timm test group")
    stock = set(timm.list_models())
    for module in _patterns("TIMM_PLUGIN_MODULES"):
        importlib.import_module(module)
    patterns = _patterns("TIMM_PLUGIN_MODELS") or ["*"]
    added = set(timm.list_models()) - stock
    mine = sorted(name for name in added if any(fnmatch.fnmatch(name, pattern) for pattern in patterns))
    if not mine:
        raise pytest.UsageError("no models of TIMM_PLUGIN_MODULES match TIMM_PLUGIN_MODELS")
    config.timm_plugin_models = mine
    token_models = [name for name in mine if _gives_tokens(name)]
    original = timm.list_models

    def list_models(
        filter: "str | Sequence[str]" = "",
        module: "str | Sequence[str]" = "",
        pretrained: bool = False,
        exclude_filters: "str | Sequence[str]" = "",
        **kwargs: Any,
    ) -> list[str]:
        exclude = [exclude_filters] if isinstance(exclude_filters, str) else list(exclude_filters)
        if not isinstance(filter, str) and "vit_*" in filter:  # timm's patterns of its own token models
            if not token_models:
                return []
            filter = token_models
        if "vit_*" in exclude:
            exclude += token_models
        if not isinstance(module, str):  # timm's files with forward_intermediates: all our models have it
            module = ""
        names = original(filter, module, pretrained, [pattern for pattern in exclude if pattern], **kwargs)
        return [name for name in names if name.split(".")[0] in mine]

    timm.list_models = list_models
    timm.list_pretrained = lambda filter="", exclude_filters="": list_models(
        filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the tests of timm's own models."""

    def is_mine(item: pytest.Item) -> bool:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        return isinstance(name, str) and name.split(".")[0] in config.timm_plugin_models

    dropped = [item for item in items if not is_mine(item)]
    items[:] = [item for item in items if is_mine(item)]
    config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which every test was skipped is no success."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    ran = reporter is None or session.config.option.collectonly or "passed" in reporter.stats
    if session.exitstatus == pytest.ExitCode.OK and not ran:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_report_header(config: pytest.Config) -> str:
    return f"timm {timm.__version__} over {', '.join(config.timm_plugin_models)}"
