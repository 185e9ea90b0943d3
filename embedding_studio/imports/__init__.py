"""Readers of files: bytes become numbered rows, rows become what is kept, while they come."""
