"""The language of the data: what an event is, how logs become sequences, how a batch looks.

Knows neither torch nor Ray: every function here is pure over Arrow tables and NumPy arrays, or talks to storage.
Invariant: a user stands in exactly one bucket, and the bucket depends on the user's id alone.
"""
