"""The ways to choose an upstream, one idea a file. Every file in this folder is found by itself."""

import importlib
import pkgutil

from atlas_pkg.balancing.strategies.registry import STRATEGIES, Strategy, strategy

__all__ = ["STRATEGIES", "Strategy", "strategy"]

# Importing a file registers what it holds under `@strategy`. From a zip archive, too.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
