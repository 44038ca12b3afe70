"""Shapes in signatures are checked while tests run; devices are eight emulated ones; programs are compiled once."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported: eight devices, and no accelerator that the machine happens to have.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Compiling is most of the tests' time. LLVM may leave the code as it is, and a program that one test has compiled is
# read by the next one, in whatever process that runs. `JAX_DISABLE_MOST_OPTIMIZATIONS=0` tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jmm-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

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
