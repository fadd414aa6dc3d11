"""The corpora that vocabularies are counted on, and what pruning does to texts nobody counted."""
