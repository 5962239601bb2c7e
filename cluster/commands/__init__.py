"""The command line: what all commands share, and one module a noun."""
