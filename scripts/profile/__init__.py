"""What profiles are made of: an engine with vLLM's profiler, its load, its trace, the pictures."""
