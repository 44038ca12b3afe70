"""Shapes in signatures are checked while tests run; devices are eight emulated ones."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported: eight devices, and no accelerator that the machine happens to have.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["jmm", "data_pipelines"], "beartype.beartype")

# The first example of a property pays for compiling; a slow machine is no failure.
settings.register_profile("jmm", deadline=None)
settings.load_profile("jmm")

MAPS, MANY = Path("/proc/self/maps"), 20_000


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Compiled programs lie in pieces of memory of their own, of which Linux allows a process 65,530: one more ends it.
    All are dropped once there are many, and with them gigabytes."""
    yield
    if MAPS.exists() and MAPS.read_text().count("\n") > MANY:
        jax.clear_caches()
        gc.collect()
