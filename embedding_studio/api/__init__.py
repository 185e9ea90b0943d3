"""The HTTP API: one module per resource, put together in `app`."""
