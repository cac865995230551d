"""The report of a board: one HTML file that opens from disk and asks the network for nothing."""
