"""Where roles run: wiring, local processes or Ray, and the command line."""
