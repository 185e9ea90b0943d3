"""What the product costs, measured: each module is a command, `python -m benchmarks.<name>`."""
