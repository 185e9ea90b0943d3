"""What the bundled methods are made of; importing this package loads neither torch nor a model."""
