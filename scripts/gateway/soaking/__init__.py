"""A gateway under mixed clients for a while: who they are, what became of each, what it took."""
