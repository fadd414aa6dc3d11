"""Tasks of lm-evaluation-harness over the data of `scripts.datasets`, and how they are scored."""
