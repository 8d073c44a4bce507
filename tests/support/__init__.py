"""What every test shares: problems, data regimes, the oracle, the emulation and the law."""
