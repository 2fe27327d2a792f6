"""The jobs of a run, what each depends on, and the progress of a run."""
