"""How fast training is here, beside a plain PyTorch loop."""
