"""Raw slides to scores: `her2 predict --bundle`, in one command and without a workflow."""
