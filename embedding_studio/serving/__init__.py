"""Vectors of registered models over HTTP, in the form of OpenAI's embeddings."""
