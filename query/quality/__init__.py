"""What searches reach, measured: recall on live traffic, and freshness.

recall      sampled searches done again exactly, and compared
windows     of which time and which searches a figure is
interval    confidence sequences, valid under continuous watching
correction  how much effort is added where live recall misses the objective
freshness   the age of what is accepted and not searchable yet
lag_sweep   every tenant's freshness lag, one after the other
"""
