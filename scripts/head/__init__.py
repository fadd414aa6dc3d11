"""What the analysis of a head is made of: its matrix, hidden states, previews, the picture."""
