"""Blobs and baked roots in an OCI image layout: what registries hold, and tools of others can copy.

verbs ─► carry (push, pull) ─► layout (the form on the disk)
"""
