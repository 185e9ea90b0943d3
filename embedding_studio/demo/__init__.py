"""A search product in miniature: a corpus, people who search it, and an honest measurement."""
