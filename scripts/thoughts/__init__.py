"""What is asked of a model that thinks, and how its thoughts are counted."""
