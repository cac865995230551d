"""Off-policy evaluation: what policies would earn, estimated from recorded episodes alone."""
