"""The JSON that the API, its client and webhooks share."""
