"""Shapes in signatures are checked while tests run; devices are eight emulated ones."""

import os

# Before jax is imported: eight devices, and no accelerator that the machine happens to have.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["jmm", "data_pipelines"], "beartype.beartype")

# The first example of a property pays for compiling; a slow machine is no failure.
settings.register_profile("jmm", deadline=None)
settings.load_profile("jmm")
