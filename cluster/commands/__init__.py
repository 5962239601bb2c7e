"""The command line, one module a noun.

base        what all commands share: options, errors, exit statuses
output      JSON or text for people; tables says which columns
operator    the connection to a platform: over HTTP, or the catalog of a directory
platform    up, down, status, doctor
tenants, keys, collections, reindex, models, audit, dead_letters, config, cluster: the noun of the
same name
observe     capacity, freshness, recall
"""
