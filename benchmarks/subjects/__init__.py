"""One module for each subject of the page; each has `measure(plan)`, which returns its section."""
