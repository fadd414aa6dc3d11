"""The smallest Qwen3.5 of the tiny model's kind: one layer group, no width above 48."""

from scripts.tiny.shape import Shape

MICRO = Shape(
    vocab=320,
    hidden=32,
    intermediate=48,
    heads=2,
    kv_heads=1,
    head_dim=16,
    rotary_fraction=0.5,
    linear_key_heads=2,
    linear_value_heads=4,
    linear_head_dim=8,
    positions=512,
)
