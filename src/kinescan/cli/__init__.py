"""The command line: one file for each verb, each with a Python function that does the same."""
