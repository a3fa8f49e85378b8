"""The methods that the paper compares with, beside the editor's own settings."""
