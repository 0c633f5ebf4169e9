"""Training of an elastic supernet: float pre-training, then sandwich steps with WDR and GPG (EQ-Net, section 3.4)."""
