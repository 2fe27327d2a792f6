"""Text for a paper: the methods draft, the checklist, the references.

The prose is in `templates/methods`; the modules here gather the facts of a run.
"""
