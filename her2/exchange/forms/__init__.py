"""Features of other programs: the forms of their files, one module each, found by listing this."""
