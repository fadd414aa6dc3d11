"""Quantized numbers back to F32 or BF16: kernels over rows, no files."""
