"""Pictures of comparisons, and the page that holds them."""
