"""Checkpoints as people have them: inspected by their headers, proven, and turned into folders
that vLLM serves. Trusts no byte of a file, and runs none.

```
source ─► safetensors | gguf | pth | npz ─► Contents ─► inspect, verify
                                               └─► schemes | families ─► outputs ─► convert
```
"""
