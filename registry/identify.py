"""Find what a source comes from among all registered versions, by their sketches."""
