"""Features of other programs: the forms of their files, one module each.

A module declares `FORM = Form(...)`; `her2.exchange.form` says what is in it, and
`her2.exchange.registry` finds it by listing this package. Its docstring names the code that writes
such files.
"""
