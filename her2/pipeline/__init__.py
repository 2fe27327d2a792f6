"""Which jobs there are, what each depends on, and how far a run is."""
