"""The verbs: one module per job, and the only package that knows all the others."""
