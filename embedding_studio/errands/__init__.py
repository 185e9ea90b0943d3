"""What a worker does besides tasks."""
