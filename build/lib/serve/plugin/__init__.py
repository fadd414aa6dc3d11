"""Runs inside vLLM's processes, by the ``vllm.general_plugins`` entry point.

The front end, the engine core, every worker and the model-inspection subprocess call
``register`` before they compile or import a model. Knows nothing of the gateway.
"""


def register() -> None:
    """Apply the patches of this version, name our load format; safe to call more than once."""
    from serve.plugin import load_format
    from serve.plugin.patches import apply_all

    apply_all()
    # After the patches: it imports much of vLLM, and torchvision must be repaired by then.
    load_format.register()
