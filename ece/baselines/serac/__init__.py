"""SERAC: a memory of edits beside the model, and a small model that answers from it."""
