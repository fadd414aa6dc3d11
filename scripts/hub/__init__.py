"""What downloads are made of: what the hub says of a repository, the fetch, the lock file."""
