"""Profiles are complete, are read one at a time, and a wrong name is answered with near ones."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from yardstick import slowness

from edgetune.errors import ModelError, UsageError
from edgetune.model import shape_of
from edgetune.profile import model_names, model_profile, names, read_yaml, unknown

CPU_SECONDS = """
import sys, time
from edgetune.model import resolve
resolve("llama-3.1-8b").parameters
print(time.process_time())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_names_are_sorted_and_hold_the_known_models() -> None:
    assert list(model_names()) == sorted(model_names())
    assert {"llama-7b", "qwen2.5-0.5b", "gemma-3-4b", "gpt2", "tiny"} <= set(model_names())


@pytest.mark.parametrize("name", [name for name in model_names() if name != "tiny"])
def test_the_published_count_is_the_count_of_the_shape(name: str) -> None:
    profile = model_profile(name)

    assert shape_of(profile.config).parameters == profile.parameters


@pytest.mark.parametrize("name", [name for name in model_names() if name != "tiny"])
def test_a_profile_says_where_it_is_from(name: str) -> None:
    profile = model_profile(name)

    assert profile.name == name
    assert profile.hub_id is not None
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", profile.hub_id)
    assert profile.source == f"https://huggingface.co/{profile.hub_id}"
    assert profile.folder is None


def test_hub_ids_are_unique() -> None:
    hub_ids = [model_profile(name).hub_id for name in model_names() if name != "tiny"]

    assert len(hub_ids) == len(set(hub_ids))


def test_the_language_model_alone_is_counted_and_the_profile_says_so() -> None:
    profile = model_profile("gemma-3-4b")

    assert profile.parameters == 3_880_263_168
    assert "4,300,079,472" in profile.note


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ModelError, match=r"'llama-8b'.*llama-7b"):
        model_profile("llama-8b")

    assert unknown("models", "zzzzzz").endswith("`edgetune models` lists all that are known.")
    assert "`edgetune devices --all`" in unknown("devices", "rtx-4061")


def test_an_unknown_device_is_a_mistake_in_the_command() -> None:
    with pytest.raises(UsageError, match="no device profile 'abacus'"):
        read_yaml("devices", "abacus")


def test_a_name_cannot_leave_the_folder_of_profiles() -> None:
    with pytest.raises(ModelError):
        read_yaml("models", "../devices/any")


def test_device_names_can_be_listed() -> None:
    assert list(names("devices")) == sorted(names("devices"))


def test_a_profile_costs_little_and_loads_no_framework() -> None:
    process = subprocess.run(
        [sys.executable, "-c", CPU_SECONDS], capture_output=True, text=True, check=True
    )
    seconds, modules = process.stdout.splitlines()

    assert float(seconds) / slowness() < 0.5
    assert not {"torch", "mlx", "transformers", "numpy", "huggingface_hub"} & set(modules.split())
