"""`her2 view`: a finished run in the browser, on this machine, read-only but for notes.

`run.py` knows what may be shown, `guard.py` who may see it. Each page or panel is one module here
that declares its `ROUTES`, with a module of the same name in `static/`; each layer over a slide is
one module of `layers/`.
"""
