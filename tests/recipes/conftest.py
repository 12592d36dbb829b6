import importlib
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def recipe() -> Callable[[str], ModuleType]:
    """Imports a recipe, which is a script and in no package: pytest has its folder on the path."""
    return importlib.import_module
