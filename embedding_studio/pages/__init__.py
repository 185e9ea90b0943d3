"""The page that the API shows to browsers: the same as its JSON, and a few forms."""
