"""What every test may use."""

pytest_plugins = ["tests.servers", "tests.iterations", "tests.executors.clusters"]
