"""The datasets and small models that the default config builds itself."""
