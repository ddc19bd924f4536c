"""What changed between two networks: in their weights, and in what they do."""
