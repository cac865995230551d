"""One file per method. A method imports rng, nets, optim and types, and nothing else of offbench."""
