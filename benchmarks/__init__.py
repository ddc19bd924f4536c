"""What `make bench` measures, and the page it writes; nothing here is part of the distribution."""
