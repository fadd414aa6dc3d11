"""Latency of served variants: prompts, load, engine facts, statistics, and the run of them."""
