"""Only vLLM's own modules are searched for its kernels, and nothing that it finds is lost."""

import json

import pytest

from serve.command import EARLY
from serve.plugin.kernel_scan import own_modules
from tests.serve.plugin.fresh import python

# Rebinds for real, then prints every module attribute, anywhere, that is a rebound kernel.
FOUND = """
import sys, json
import vllm.v1.worker.cpu_worker
from vllm.platforms import current_platform
from vllm.triton_utils import dispatcher
current_platform.register_triton_kernel_overrides()
print(json.dumps(sorted(
    f"{name}.{attr}" for name, module in list(sys.modules.items())
    for attr, value in list((getattr(module, "__dict__", None) or {}).items())
    if type(value) is dispatcher.KernelOverride
)))
"""


def rebound(before: str) -> list[str]:
    done = python(before + FOUND, EARLY)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.torch
def test_the_narrow_scan_rebinds_what_the_wide_one_does() -> None:
    narrow = rebound("from serve.plugin import kernel_scan; kernel_scan.apply()")
    assert narrow == rebound("")
    assert narrow


def test_a_module_is_vllms_by_its_first_name() -> None:
    modules = dict.fromkeys(("vllm", "vllm.a", "vllm_other", "torch.vllm", "x"))
    assert list(own_modules(modules)) == ["vllm", "vllm.a"]
