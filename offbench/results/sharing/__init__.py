"""Records kept whole, put together, cleared up, exported and packed for others."""
