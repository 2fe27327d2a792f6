"""`her2 view`: all slides of all cohorts as columns, for the page that lists them."""
