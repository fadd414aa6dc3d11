"""Runs inside vLLM's processes, by the ``vllm.general_plugins`` entry point.

The front end, the engine core, every worker and the model-inspection subprocess call
``register`` before they compile or import a model. Knows nothing of the gateway.
"""


def register() -> None:
    """Apply the patches of this version; safe to call any number of times."""
    from serve.plugin.patches import apply_all

    apply_all()
