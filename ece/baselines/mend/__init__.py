"""MEND: a network, trained ahead, that turns gradients into edits."""
