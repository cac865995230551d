"""`offbench data ...`: what datasets there are, what is in them, and how they get here."""
