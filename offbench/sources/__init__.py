"""Native dataset formats -> ReplayData, one module per format; dataset packages are imported inside functions."""
