"""`her2 view`: a finished run in the browser, on this machine, read-only but for notes.

`run.py` knows what may be shown, and `guard.py` who may see it. `pages/` has what a browser can ask
for: one module for each page and panel, whose script is in `static/`. `layers/` has one module for
each layer over a slide.
"""
