"""Sections of the page, one module each, that take what they show from the results."""
