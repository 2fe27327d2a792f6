"""Text for a paper: the methods draft, the checklist, the references."""
