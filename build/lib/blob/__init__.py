"""Weight blobs: a model's tensors, quantized once, in plain safetensors shards with a manifest.

Owns the format: what stands in a blob (``manifest``, ``layout``), how a tensor is stored
(``codecs``), where it lies (``store``), how it is made (``writer``), and how it comes back, each
byte proven (``blob``, ``reconstruct``). Knows no vLLM, no HTTP, no torch.
"""
