"""What the tests of the suite share: tiny models, plans for them, opened sessions."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from letters import with_letters
from models import make_model

from conformance.backends import BACKENDS, WAYS
from conformance.sessions import Bench
from edgetune.device import read_device
from edgetune.model import LocalModel


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """Closing a session collects garbage: 0.7 s each, were all that is imported looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A random Llama of two blocks, and a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    return LocalModel.open(with_letters(make_model(folder, "llama", num_hidden_layers=2)))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """One whose matrices have whole groups of 64 inputs, and a tokenizer."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return LocalModel.open(
        with_letters(make_model(tmp_path_factory.mktemp("wide"), "llama", **sizes))
    )


@pytest.fixture(params=BACKENDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Opens sessions of a backend under test and closes them."""
    with ExitStack() as held:
        device = read_device(WAYS[request.param].device)
        yield Bench(request.param, BACKENDS[request.param], device, held)
