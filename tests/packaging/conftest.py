"""Distributions built from this tree."""

from __future__ import annotations

import pytest
from environments import Built, build, copy_tree


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The distributions of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    tree = copy_tree(folder / "tree")
    build(tree, folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(tree, sdist, wheel)
