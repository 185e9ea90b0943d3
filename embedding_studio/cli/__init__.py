"""The command line: wiring only. Imports wait until a command needs them."""
