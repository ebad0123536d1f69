"""The adapters that are wanted: listed, fetched, checked, and proved to be themselves."""
