"""Build time of weights: a checkpoint folder → a blob, and blobs from one machine to another.

The format is ``blob``'s; here is what reads checkpoints, decides what a folder for vLLM needs
besides tensors, and keeps two makers apart.
"""
