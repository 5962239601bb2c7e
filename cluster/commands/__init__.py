"""The command line, one module per noun.

base        options, errors and exit statuses of all commands
output      JSON, or text for people; tables: its columns
operator    the connection to a platform: over HTTP, or to the catalog of a directory
platform    up, down, status, doctor
observe     capacity, freshness, recall
demo        demo; demo_run: its checks; demo_documents: its documents

tenants, keys, collections, reindex, models, audit, dead_letters, config and cluster are the nouns
of the same name.
"""
