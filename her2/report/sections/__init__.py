"""One module per section of the page: what it shows, taken from the results."""
