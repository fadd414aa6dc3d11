"""Families of models: what GGUF calls their parts, and the folder they become."""
