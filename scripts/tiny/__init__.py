"""The small model that ships: its corpus, tokenizer, network, training and record.

Owns everything behind `python -m scripts.train_tiny`. Knows nothing of vLLM at run time: it only
writes the tensor names and shapes that vLLM's `Qwen3_5ForCausalLM` and `Qwen3_5MTP` read.
"""
