"""The methods of a Registry, by what people want of it."""
