"""Documents in: intake, validate, cut, embed, dead-letter."""
