"""One file per method. A method imports rng, nets, optim and types, and no other module of offbench."""
