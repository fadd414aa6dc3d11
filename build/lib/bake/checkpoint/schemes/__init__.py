"""How a folder's weights are quantized, and what makes plain ones of them.

```
names + config.json ─► method ─► its layers' Outputs ─┐
                                the rest, plain ──────┴─► plan
```

What a file holds is believed by its tensors, what they mean by ``quantization_config``. Whatever
stays over that looks like a part of a quantized weight is an error: it is never copied as if it
were a weight of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bake.checkpoint.contents import Tensor
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import awq, bnb, fp8, gptq, integers, packed, parts, plain
from bake.checkpoint.schemes.parts import Checkpoint, Read
from bake.checkpoint.settings import settings_of
from bake.errors import BakeError, Misset, Unsupported

# What only runs of a quantized engine need: scales of activations and of the KV cache.
DROPPED = (
    ".input_scale",
    ".input_scale_inv",
    ".input_zero_point",
    ".input_global_scale",
    ".input_scale_ub",
    ".output_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
    ".prob_scale",
)
# What is a part of a weight in one scheme or another, and never one of its own.
PARTS = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".SCB",
    ".weight_format",
)
FORMATS = (
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
)
Planner = Callable[[Checkpoint], list[Output]]


def plan(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], read: Read | None = None
) -> list[Output]:
    """What a conversion writes: every weight under its plain name, in the order of ``tensors``.

    ``read`` gives a stored tensor by its name. It is asked for what is small and says a shape:
    ``quant_state`` of bitsandbytes, ``weight_shape`` of compressed-tensors.

    :raises Malformed: a part is missing or has another shape than its layer needs.
    :raises Unsupported: something is not known here: what, and of which tensor.
    """
    checkpoint = _checkpoint(tensors, config, read)
    made: dict[str, Output] = {}
    for planner in _planners(checkpoint):
        for output in planner(checkpoint):
            if output.name in made:
                raise parts.unfit(output.name, "is stored twice, in two ways")
            made[output.name] = output
    used = {name for output in made.values() for name in output.inputs}
    for output in _plain(checkpoint, used):
        if output.name in made:
            raise parts.unfit(output.name, "is stored twice, in two ways")
        made[output.name] = output
    places = {name: at for at, name in enumerate(tensors)}
    return sorted(made.values(), key=lambda output: places[output.inputs[0]])


def dropped(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that ``plan`` leaves out: scales of activations and of caches."""
    if not settings_of(config):
        return ()
    return tuple(name for name in tensors if name.endswith(DROPPED))


def detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """One short sentence of how weights are quantized; nothing for plain ones. Never raises."""
    checkpoint = Checkpoint(tensors, _mapping(settings_of(config)))
    method = _method(checkpoint)
    described = {
        "gptq": gptq.described,
        "awq": awq.described,
        "bitsandbytes": bnb.described,
        "compressed-tensors": _compressed,
        "fp8": fp8.described,
    }.get(method)
    try:
        said = described(checkpoint) if described else ""
    except BakeError as error:
        said = error.what
    return f"{method} {said}".strip()


def _mapping(settings: object) -> Mapping[str, Any]:
    return settings if isinstance(settings, Mapping) else {}


def _checkpoint(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], read: Read | None
) -> Checkpoint:
    settings = settings_of(config)
    if settings is not None and not isinstance(settings, Mapping):
        raise Misset(
            "config.json", f"quantization_config: expected a mapping, got {parts.shown(settings)}"
        )
    model = config.get("model_type")
    return Checkpoint(tensors, _mapping(settings), read, model if isinstance(model, str) else "")


def _method(checkpoint: Checkpoint) -> str:
    """The name of the method: what the config says, or else what tensors cannot hide."""
    said = checkpoint.settings.get("quant_method")
    if isinstance(said, str):
        return parts.shown(said)[1:-1]
    if checkpoint.settings.get("config_groups") is not None:
        return "compressed-tensors"
    # Old configs of bitsandbytes name no method.
    if any(checkpoint.settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        return "bitsandbytes"
    if any(bnb.STATE in name or name.endswith(".SCB") for name in checkpoint.tensors):
        return "bitsandbytes"
    if any(tensor.dtype in fp8.CODES for tensor in checkpoint.tensors.values()):
        return "fp8"
    return ""


def _planners(checkpoint: Checkpoint) -> tuple[Planner, ...]:
    """What knows the weights of this method.

    :raises Unsupported: nothing does.
    """
    method = _method(checkpoint)
    if method == "compressed-tensors":
        _check_formats(checkpoint)
    known: dict[str, tuple[Planner, ...]] = {
        "": (),
        "fp8": (fp8.outputs,),
        "fbgemm_fp8": (fp8.outputs,),
        "modelopt": (fp8.outputs,),
        "gptq": (gptq.outputs,),
        "awq": (awq.outputs,),
        "compressed-tensors": (fp8.outputs, packed.outputs, integers.outputs),
        "bitsandbytes": (bnb.outputs, integers.outputs),
    }
    if method not in known:
        raise Unsupported(
            f"quantized by {method}, which is not known here",
            f"known are {', '.join(name for name in known if name)}",
        )
    fp8.check(checkpoint)
    return known[method]


def _check_formats(checkpoint: Checkpoint) -> None:
    """:raises Unsupported: a format of compressed-tensors is not known here."""
    groups = checkpoint.settings.get("config_groups")
    values = list(groups.values()) if isinstance(groups, Mapping) else []
    said = [checkpoint.settings.get("format")]
    said += [each.get("format") for each in values if isinstance(each, Mapping)]
    for form in said:
        if form is not None and form not in FORMATS:
            raise Unsupported(f"compressed-tensors: format {parts.shown(form)} is not known here")
    sparse = _mapping(checkpoint.settings.get("sparsity_config")).get("format", "dense")
    if sparse != "dense":
        raise Unsupported(f"compressed-tensors: {parts.shown(sparse)} is not known here")


def _plain(checkpoint: Checkpoint, used: set[str]) -> list[Output]:
    """Outputs of all that no scheme has used.

    :raises Malformed: it is a part of a weight whose other parts are not there.
    """
    made, method = [], _method(checkpoint)
    for tensor in checkpoint.tensors.values():
        name = tensor.name
        if name in used or (checkpoint.settings and name.endswith(DROPPED)):
            continue
        _check_left_over(method, tensor)
        made.append(plain.of(tensor))
    return made


def _check_left_over(method: str, tensor: Tensor) -> None:
    """:raises Malformed: this is a part of a weight whose other parts are not there."""
    reason = f"{method} has no use for it" if method else "config.json has no quantization_config"
    if tensor.name.endswith(PARTS) or bnb.STATE in tensor.name:
        raise parts.unfit(tensor.name, f"is a part of a quantized weight, and {reason}")
    if method and tensor.name.endswith(".weight") and tensor.dtype in plain.KEPT:
        raise parts.unfit(
            tensor.name, f"its scale is missing: {tensor.dtype} is no weight by itself"
        )


def _compressed(checkpoint: Checkpoint) -> str:
    """``pack-quantized, 4-bit, group 128``."""
    form = checkpoint.settings.get("format")
    said = [parts.shown(form)[1:-1]] if isinstance(form, str) else []
    for weights in checkpoint.weights:
        kind = "float" if weights.get("type") == "float" else "bit"
        said.append(f"{parts.shown(weights.get('num_bits'))}-{kind}{parts.grouped(weights)}")
    return ", ".join(dict.fromkeys(said))
