"""Build time: what an image is made of. Imports ``serve``, and is imported by nothing in it."""
