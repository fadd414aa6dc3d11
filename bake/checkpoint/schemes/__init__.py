"""How people have quantized the linears of Hugging Face folders, and the way back to numbers."""
